// Numbers become integers, 0 … 255, on scales taken from their largest values: of every row, or of every column.
//
// A row or column that holds NaN or infinity has the step NaN, whatever its bytes are then, and so spoils what is
// multiplied by it and nothing else.

#pragma once

#include "product.h"

namespace {

constexpr float SMALLEST_SCALE = 0x1p-63f;  // of octavo.numerics.scheme

// The integers of a scheme without zero-point, ±highest or 0 … highest, stored from `zero` on.
struct Levels {
  float highest, lowest;
  int64_t zero;

  explicit Levels(int64_t highest, bool is_signed)
      : highest(static_cast<float>(highest)), lowest(is_signed ? -static_cast<float>(highest) : 0), zero(is_signed ? 128 : 0) {}

  float step(float most) const {
    if (!std::isfinite(most)) return std::numeric_limits<float>::quiet_NaN();
    return most == 0 ? 1 : std::max(most / highest, SMALLEST_SCALE);
  }

  // steps, in place of the largest values
  void to_steps(float* most, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) most[i] = step(most[i]);
  }
};

// max(most, |x|), NaN above all: without their signs, floats are in the order of their bits.
float larger(float most, float x) {
  int32_t bits, before;
  std::memcpy(&bits, &x, 4);
  std::memcpy(&before, &most, 4);
  bits = std::max(bits & 0x7fffffff, before);
  std::memcpy(&most, &bits, 4);
  return most;
}

I32 larger(I32 most, F32 x) { return max(most, both(bits(x), every(int32_t(0x7fffffff)))); }

int32_t rounded(float x, float inverse, const Levels& by) {
  const float q = std::nearbyint(std::min(std::max(by.lowest, x * inverse), by.highest));
  return static_cast<int32_t>(static_cast<int64_t>(q) + by.zero);
}

I32 rounded(F32 x, F32 inverse, const Levels& by) {
  const F32 q = min(max(multiply(x, inverse), every(by.lowest)), every(by.highest));
  return add(to_integers(q), every(static_cast<int32_t>(by.zero)));
}

// max|x| of `count` numbers, `stride` apart
float most_of(const float* x, int64_t count, int64_t stride) {
  float most = 0;
  int64_t i = 0;
  if (stride == 1 && count >= LANES) {
    I32 all = every(int32_t(0));
    for (; i + LANES <= count; i += LANES) all = larger(all, load(x + i));
    most = highest_bits(from_bits(all));
  }
  for (; i < count; ++i) most = larger(most, x[i * stride]);
  return most;
}

// `count` numbers, `stride` apart, as integers on one step; zeros behind them up to `depth`
template <typename Integer>
void round_to(Integer* to, const float* x, int64_t count, int64_t stride, int64_t depth, float step, const Levels& by) {
  const float inverse = 1 / step;
  int64_t i = 0;
  for (; stride == 1 && i + LANES <= count; i += LANES) store(to + i, rounded(load(x + i), every(inverse), by));
  for (; i < count; ++i) to[i] = static_cast<Integer>(rounded(x[i * stride], inverse, by));
  for (; i < depth; ++i) to[i] = 0;
}

// Rows of a left operand: [rows, depth] from x[row · sr + k · sk], a step for each. Some rows at a time, which stay in the
// nearest cache: so no row waits for its own maximum.
template <typename Integer>
void round_rows(Integer* to, float* steps, const float* x, int64_t rows, int64_t k, int64_t depth, int64_t sr, int64_t sk,
                const Levels& by) {
  const int64_t together = std::max<int64_t>(1, IN_CACHE / std::max<int64_t>(k, 1));
  for (int64_t first = 0; first < rows; first += together) {
    const int64_t last = std::min(first + together, rows);
    for (int64_t row = first; row < last; ++row) steps[row] = most_of(x + row * sr, k, sk);
    by.to_steps(steps + first, last - first);
    for (int64_t row = first; row < last; ++row) round_to(to + row * depth, x + row * sr, k, sk, depth, steps[row], by);
  }
}

// Columns of a right operand: [k, columns] from x[row · sk + column], a step for each
void round_columns(uint8_t* to, float* steps, const float* x, int64_t k, int64_t columns, int64_t sk, const Levels& by) {
  int64_t n = 0;
  for (; n + LANES <= columns; n += LANES) {
    I32 most = every(int32_t(0));
    for (int64_t row = 0; row < k; ++row) most = larger(most, load(x + row * sk + n));
    store(steps + n, from_bits(most));
    by.to_steps(steps + n, LANES);
    const F32 inverse = divide(every(1.0f), load(steps + n));
    for (int64_t row = 0; row < k; ++row) store(to + row * columns + n, rounded(load(x + row * sk + n), inverse, by));
  }
  for (; n < columns; ++n) {
    steps[n] = by.step(most_of(x + n, k, sk));
    for (int64_t row = 0; row < k; ++row)
      to[row * columns + n] = static_cast<uint8_t>(rounded(x[row * sk + n], 1 / steps[n], by));
  }
}

}  // namespace
