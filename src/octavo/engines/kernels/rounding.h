// Numbers become bytes on scales taken from their largest values: of every row, or of every column.
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

uint8_t rounded(float x, float inverse, const Levels& by) {
  const float q = std::nearbyint(std::min(std::max(by.lowest, x * inverse), by.highest));
  return static_cast<uint8_t>(static_cast<int64_t>(q) + by.zero);
}

#ifdef OCTAVO_VNNI
__m512i larger(__m512i most, __m512i x) { return _mm512_max_epi32(most, _mm512_and_si512(x, _mm512_set1_epi32(0x7fffffff))); }

__m512i larger(__m512i most, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = larger(most, _mm512_loadu_si512(x + i));
  return i == count ? most : larger(most, _mm512_maskz_loadu_epi32(lanes(count, i), x + i));
}

__m128i rounded(__m512 x, __m512 inverse, const Levels& by) {
  const __m512 low = _mm512_set1_ps(by.lowest), high = _mm512_set1_ps(by.highest);
  const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(x, inverse), low), high));
  return _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(static_cast<int>(by.zero))));
}
#endif

// max|x| of `count` numbers, `stride` apart
float most_of(const float* x, int64_t count, int64_t stride) {
#ifdef OCTAVO_VNNI
  if (stride == 1) {
    const int32_t bits = _mm512_reduce_max_epi32(larger(_mm512_setzero_si512(), x, count));
    float most;
    std::memcpy(&most, &bits, 4);
    return most;
  }
#endif
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = larger(most, x[i * stride]);
  return most;
}

// `count` numbers, `stride` apart, as bytes on one step; zeros behind them up to `depth`
void round_to(uint8_t* to, const float* x, int64_t count, int64_t stride, int64_t depth, float step, const Levels& by) {
  const float inverse = 1 / step;
  int64_t i = 0;
#ifdef OCTAVO_VNNI
  for (; stride == 1 && i + LANES <= count; i += LANES)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), rounded(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse), by));
#endif
  for (; i < count; ++i) to[i] = rounded(x[i * stride], inverse, by);
  for (; i < depth; ++i) to[i] = 0;
}

// Rows of a left operand: [rows, depth] from x[row · sr + k · sk], a step for each. Some rows at a time, which stay in the
// nearest cache: so no row waits for its own maximum.
void round_rows(uint8_t* to, float* steps, const float* x, int64_t rows, int64_t k, int64_t depth, int64_t sr, int64_t sk,
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
#ifdef OCTAVO_VNNI
  for (; n + LANES <= columns; n += LANES) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t row = 0; row < k; ++row) most = larger(most, _mm512_loadu_si512(x + row * sk + n));
    _mm512_storeu_si512(steps + n, most);
    by.to_steps(steps + n, LANES);
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_loadu_ps(steps + n));
    for (int64_t row = 0; row < k; ++row)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + row * columns + n), rounded(_mm512_loadu_ps(x + row * sk + n), inverse, by));
  }
#endif
  for (; n < columns; ++n) {
    steps[n] = by.step(most_of(x + n, k, sk));
    for (int64_t row = 0; row < k; ++row) to[row * columns + n] = rounded(x[row * sk + n], 1 / steps[n], by);
  }
}

}  // namespace
