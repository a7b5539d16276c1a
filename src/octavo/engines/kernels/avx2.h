// Vectors of `simd.h` on AVX2: of each, two registers of eight lanes.
//
// AVX2 has a product of bytes, vpmaddubsw, which adds two of them in 16 bits and saturates. Of operands widened to 16 bits
// vpmaddwd adds two in 32, which is exact, and takes 17 % longer on a Zen 3 and 37 % on a Xeon (docs/engines.md).

#pragma once

#include <immintrin.h>

namespace {

struct F32 {
  __m256 a, b;
};
struct I32 {
  __m256i a, b;
};
using Lanes = int64_t;  // how many
using Left = int16_t;
using Right = I32;      // as 16 bits, two of each column
using Spread = __m256i;
using Pixels = I32;
using Bytes = __m128i;

constexpr int64_t GROUP = 2, VECTORS = 1;
constexpr int64_t ROWS = 4, WIDE = 1;  // 4 × 2 sums, 2 right registers, 1 left: 11 of 16; more rows are no faster

// ---- lanes

inline Lanes lanes(int64_t count) { return std::clamp<int64_t>(count, 0, LANES); }

inline __m256i mask(Lanes some, int32_t at) {
  const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(some) - at), number);
}

// ---- float32

inline F32 every(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline F32 load(const float* from, Lanes some) {
  if (some == LANES) return load(from);
  return {_mm256_maskload_ps(from, mask(some, 0)), _mm256_maskload_ps(from + 8, mask(some, 8))};
}
inline void store(float* to, F32 x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
inline void store(float* to, F32 x, Lanes some) {
  if (some == LANES) return store(to, x);
  _mm256_maskstore_ps(to, mask(some, 0), x.a);
  _mm256_maskstore_ps(to + 8, mask(some, 8), x.b);
}
inline F32 add(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32 subtract(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32 multiply(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32 divide(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32 fused(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F32 min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32 max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32 nearest(F32 x) {
  constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
inline F32 floor(F32 x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
inline __m256 times_power_of_two(__m256 x, __m256 n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}
inline F32 times_power_of_two(F32 x, F32 n) { return {times_power_of_two(x.a, n.a), times_power_of_two(x.b, n.b)}; }
inline __m256 if_positive(__m256 x, __m256 then, __m256 otherwise) {
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
}
inline F32 if_positive(F32 x, F32 y, F32 z) { return {if_positive(x.a, y.a, z.a), if_positive(x.b, y.b, z.b)}; }
inline F32 keep(F32 x, Lanes some, F32 others) {
  return {_mm256_blendv_ps(others.a, x.a, _mm256_castsi256_ps(mask(some, 0))),
          _mm256_blendv_ps(others.b, x.b, _mm256_castsi256_ps(mask(some, 8)))};
}

// ---- int32

inline I32 every(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32 load(const int32_t* from) {
  const auto* at = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void store(int32_t* to, I32 x) {
  auto* at = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(at, x.a);
  _mm256_storeu_si256(at + 1, x.b);
}
inline void store(int32_t* to, I32 x, Lanes some) {
  if (some == LANES) return store(to, x);
  _mm256_maskstore_epi32(to, mask(some, 0), x.a);
  _mm256_maskstore_epi32(to + 8, mask(some, 8), x.b);
}
inline I32 add(I32 x, I32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I32 min(I32 x, I32 y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
inline I32 max(I32 x, I32 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline F32 to_floats(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I32 to_integers(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I32 bits(F32 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline F32 from_bits(I32 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline I32 both(I32 x, I32 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }

template <typename Join>
inline float joined(F32 x, const Join& join) {
  const __m256 eight = join(x.a, x.b);
  const __m256 four = join(eight, _mm256_permute2f128_ps(eight, eight, 1));
  const __m256 two = join(four, _mm256_permute_ps(four, 0x4e));
  return _mm256_cvtss_f32(join(two, _mm256_permute_ps(two, 0xb1)));
}
inline float total(F32 x) { return joined(x, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); }); }
inline float highest(F32 x) { return joined(x, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }); }

inline float highest_bits(F32 x) {  // as int32
  return joined(x, [](__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  });
}

// ---- sixteen bytes

// Lanes in 16 bits each, in order; what does not fit becomes the nearest that does.
inline __m256i sixteens(I32 x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8); }
inline __m128i sixteen_bytes(I32 x) {
  const __m256i all = sixteens(x);
  return _mm_packus_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
inline void store(uint8_t* to, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), sixteen_bytes(x)); }
inline void store(uint8_t* to, I32 x, Lanes some) {
  if (some == LANES) return store(to, x);
  uint8_t all[LANES];
  store(all, x);
  std::memcpy(to, all, some);
}
inline void store(Left* to, I32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sixteens(x)); }
inline __m128i sixteen_bytes(const uint8_t* from, Lanes some) {
  if (some == LANES) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  uint8_t all[LANES] = {};
  std::memcpy(all, from, some);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(all));
}
inline I32 widened(__m128i x) { return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))}; }
inline I32 widened(const uint8_t* from, Lanes some) { return widened(sixteen_bytes(from, some)); }

// ---- products

INLINE inline Right load(const int8_t* from) {
  const auto* at = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}
inline Spread spread(const Left* from) {
  int32_t two;
  std::memcpy(&two, from, 4);
  return _mm256_set1_epi32(two);
}
INLINE inline void dot(I32& sum, const Pixels& u, const Right& w) {
  sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(u.a, w.a));
  sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(u.b, w.b));
}
INLINE inline void dot(I32& sum, Spread u, const Right& w) { dot(sum, Pixels{u, u}, w); }

// Sixteen columns of two rows, columns side by side, as signed bytes.
inline void weave(const uint8_t* const rows[GROUP], int8_t* to) {
  const __m128i flip = _mm_set1_epi8(static_cast<char>(0x80));
  const __m128i one = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0])), flip);
  const __m128i two = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[1])), flip);
  auto* at = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(at, _mm_unpacklo_epi8(one, two));
  _mm_storeu_si128(at + 1, _mm_unpackhi_epi8(one, two));
}

// ---- blocks of sixteen bytes

inline Bytes every_byte(int64_t x) { return _mm_set1_epi8(static_cast<char>(x)); }
inline Bytes load_block(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline Bytes load_block(const uint8_t* from, int64_t count) { return sixteen_bytes(from, count); }
inline void store_block(uint8_t* to, Bytes x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x); }
inline void store_block(uint8_t* to, Bytes x, int64_t count) {
  uint8_t all[LANES];
  store_block(all, x);
  std::memcpy(to, all, count);
}
INLINE inline Bytes packed(const F32 x[VECTORS], Bytes low, Bytes high) {
  return _mm_max_epu8(_mm_min_epu8(sixteen_bytes(to_integers(x[0])), high), low);
}
INLINE inline void unpacked(Bytes bytes, I32 to[VECTORS]) { to[0] = widened(bytes); }
INLINE inline void interleave(const Bytes p[GROUP], Pixels to[VECTORS]) {
  to[0] = {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(p[0], p[1])), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(p[0], p[1]))};
}

}  // namespace
