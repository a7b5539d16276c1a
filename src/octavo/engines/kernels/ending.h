// How a product ends: sums are scaled, go through an activation, and are written as float32 or rounded to bytes.

#pragma once

#include "softmax.h"

namespace {

// x · Φ(x): erfc by formula 7.1.26 of Abramowitz and Stegun, whose error is below 1.5e-7
F32 gelu(F32 x) {
  const F32 size = from_bits(both(bits(x), every(int32_t(0x7fffffff)))), one = every(1.0f);
  const F32 z = multiply(size, every(0.70710678f)), t = divide(one, fused(z, every(0.3275911f), one));
  F32 tail = every(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) tail = fused(tail, t, every(c));
  const F32 power = power_of_two(multiply(multiply(z, z), every(-LOG2_E)));
  tail = multiply(multiply(tail, t), multiply(power, every(0.5f)));  // Φ(−|x|)
  return multiply(x, if_positive(x, subtract(one, tail), tail));
}

// x · σ(y): 1 / (1 + e) or e / (1 + e), e being exp(−|y|), and nothing where that is the least there is
F32 gated(F32 x, F32 y) {
  const F32 size = from_bits(both(bits(y), every(int32_t(0x7fffffff)))), one = every(1.0f), none = every(0.0f);
  F32 e = power_of_two(multiply(size, every(-LOG2_E)));
  e = if_positive(subtract(e, every(0x1p-99f)), e, none);
  return multiply(x, divide(if_positive(y, one, e), add(one, e)));
}

// x · σ(2 √(2/π) (x + 0.044715 x³)), which is GELU by a tanh
F32 gelu_by_tanh(F32 x) {
  const F32 cubic = fused(multiply(multiply(x, x), x), every(0.044715f), x);
  return gated(x, multiply(cubic, every(1.5957691f)));
}

// 2 σ(2x) − 1, the sign of which is that of x
F32 tanh(F32 x) {
  const F32 size = from_bits(both(bits(x), every(int32_t(0x7fffffff)))), one = every(1.0f);
  const F32 e = power_of_two(multiply(size, every(-2 * LOG2_E)));
  const F32 found = divide(subtract(one, e), add(one, e)), bounded = min(one, max(every(-1.0f), x));
  const F32 nought = subtract(bounded, bounded);  // or NaN, if x is
  return add(nought, if_positive(x, found, subtract(every(0.0f), found)));
}

F32 relu(F32 x) { return max(every(0.0f), x); }  // NaN, the second, stays

// x · min(max(x + 3, 0), 6) / 6
F32 hardswish(F32 x) {
  const F32 gate = min(every(6.0f), max(every(0.0f), add(x, every(3.0f))));
  return multiply(x, multiply(gate, every(1.0f / 6)));
}

F32 swish(F32 x) { return gated(x, x); }

F32 unchanged(F32 x) { return x; }

// What a product writes: float32, or bytes of one step, if that is not 0.
struct Ending {
  const float* scales;        // of the columns
  const float* bias;          // of the columns; may be null
  float low, high;            // what the activation lies between; the whole line, if it has no bounds
  float inverse_step = 0, zero = 0;

  Ending of(int64_t column) const {
    Ending part = *this;
    part.scales += column;
    if (bias != nullptr) part.bias += column;
    return part;
  }
};

// Sums of one row, times `scale` and the scales of their columns, plus bias, through `post` → float32 or uint8
template <F32 (*post)(F32)>
void write_scaled(const int32_t* sums, int64_t columns, float scale, const Ending& as, void* to, int64_t at) {
  const F32 all = every(scale), inverse = every(as.inverse_step), zero = every(as.zero);
  const F32 low = every(as.low), high = every(as.high);
  for (int64_t n = 0; n < columns; n += LANES) {
    const Lanes some = lanes(columns - n);
    F32 x = multiply(to_floats(load(sums + n)), multiply(all, load(as.scales + n, some)));
    if (as.bias != nullptr) x = add(x, load(as.bias + n, some));
    x = min(high, max(low, post(x)));  // NaN, the second, stays
    if (as.inverse_step == 0) {
      store(static_cast<float*>(to) + at + n, x, some);
    } else {
      const F32 q = add(nearest(multiply(x, inverse)), zero);
      store(static_cast<uint8_t*>(to) + at + n, to_integers(min(max(q, every(0.0f)), every(255.0f))), some);
    }
  }
}

using Write = decltype(&write_scaled<unchanged>);

// How the activation that oneDNN calls `post` is written
Write writer(c10::string_view post, c10::string_view algorithm) {
  if (post == "none" || post == "hardtanh") return write_scaled<unchanged>;
  if (post == "relu") return write_scaled<relu>;
  if (post == "gelu") return algorithm == "tanh" ? write_scaled<gelu_by_tanh> : write_scaled<gelu>;
  if (post == "swish") return write_scaled<swish>;
  if (post == "hardswish") return write_scaled<hardswish>;
  TORCH_CHECK(post == "tanh", "int8 linear: it has no ", post);
  return write_scaled<tanh>;
}

}  // namespace
