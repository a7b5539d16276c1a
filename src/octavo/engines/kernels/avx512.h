// Vectors of `simd.h` on AVX-512 with VNNI.

#pragma once

#ifdef OCTAVO_EMULATED
#include "emulated.h"
#else
#include <immintrin.h>
#endif

namespace {

using F32 = __m512;
using I32 = __m512i;
using Lanes = __mmask16;
using Left = uint8_t;
using Right = __m512i;
using Spread = __m512i;
using Pixels = __m512i;
using Bytes = __m512i;

constexpr int64_t GROUP = 4, VECTORS = 4;
constexpr int64_t ROWS = 6, WIDE = 4;  // 6 × 4 sums, 4 right vectors, 1 left: 29 of 32 registers

// ---- lanes

inline Lanes lanes(int64_t count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : static_cast<Lanes>((1u << count) - 1); }

// ---- float32

inline F32 every(float x) { return _mm512_set1_ps(x); }
inline F32 load(const float* from) { return _mm512_loadu_ps(from); }
inline F32 load(const float* from, Lanes some) { return _mm512_maskz_loadu_ps(some, from); }
inline void store(float* to, F32 x) { _mm512_storeu_ps(to, x); }
inline void store(float* to, F32 x, Lanes some) { _mm512_mask_storeu_ps(to, some, x); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 subtract(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 multiply(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 divide(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 fused(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }  // a·b + c, rounded once
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }                // the second, if one is NaN
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 nearest(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 floor(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline F32 times_power_of_two(F32 x, F32 n) { return _mm512_scalef_ps(x, n); }  // n whole, −126 … 127
inline F32 if_positive(F32 x, F32 then, F32 otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), then);
}
inline F32 keep(F32 x, Lanes some, F32 others) { return _mm512_mask_mov_ps(others, some, x); }

// ---- int32

inline I32 every(int32_t x) { return _mm512_set1_epi32(x); }
inline I32 load(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void store(int32_t* to, I32 x) { _mm512_storeu_si512(to, x); }
inline void store(int32_t* to, I32 x, Lanes some) { _mm512_mask_storeu_epi32(to, some, x); }
inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 min(I32 a, I32 b) { return _mm512_min_epi32(a, b); }
inline I32 max(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
inline F32 to_floats(I32 x) { return _mm512_cvtepi32_ps(x); }
inline I32 to_integers(F32 x) { return _mm512_cvtps_epi32(x); }  // to nearest, ties to even
inline I32 bits(F32 x) { return _mm512_castps_si512(x); }
inline F32 from_bits(I32 x) { return _mm512_castsi512_ps(x); }
inline I32 both(I32 a, I32 b) { return _mm512_and_si512(a, b); }

// Halves are joined, then their halves: in this order on every CPU.
template <typename Join>
INLINE inline auto joined(F32 x, const Join& join) {
  x = join(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  x = join(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = join(x, _mm512_permute_ps(x, 0x4e));
  x = join(x, _mm512_permute_ps(x, 0xb1));
  return _mm512_cvtss_f32(x);
}
inline float total(F32 x) { return joined(x, [](F32 a, F32 b) INLINE { return add(a, b); }); }
inline float highest(F32 x) { return joined(x, [](F32 a, F32 b) INLINE { return max(a, b); }); }

inline float highest_bits(F32 x) {  // as int32
  return joined(x, [](F32 a, F32 b) INLINE { return from_bits(max(bits(a), bits(b))); });
}

// ---- sixteen bytes

inline void store(uint8_t* to, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x)); }
inline void store(uint8_t* to, I32 x, Lanes some) { _mm512_mask_cvtepi32_storeu_epi8(to, some, x); }
inline I32 widened(const uint8_t* from, Lanes some) { return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some, from)); }

// ---- products

inline Right load(const int8_t* from) { return _mm512_loadu_si512(from); }
inline Spread spread(const Left* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm512_set1_epi32(four);
}
INLINE inline void dot(I32& sum, __m512i u, __m512i w) {
#ifdef OCTAVO_EMULATED
  sum = _mm512_dpbusd_epi32(sum, u, w);
#else  // Written out: GCC 12 else keeps the sums of a tile in memory.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(w));
#endif
}

// Sixteen columns of four rows, columns side by side, as signed bytes.
inline void weave(const uint8_t* const rows[GROUP], int8_t* to) {
  const __m128i flip = _mm_set1_epi8(static_cast<char>(0x80));
  __m128i row[4];
  for (int i = 0; i < 4; ++i) row[i] = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i])), flip);
  const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
  auto* at = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(at + 0, _mm_unpacklo_epi16(low01, low23));
  _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(low01, low23));
  _mm_storeu_si128(at + 2, _mm_unpacklo_epi16(high01, high23));
  _mm_storeu_si128(at + 3, _mm_unpackhi_epi16(high01, high23));
}

// ---- blocks of 64 bytes

inline Bytes every_byte(int64_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline Bytes load_block(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Bytes load_block(const uint8_t* from, int64_t count) { return _mm512_maskz_loadu_epi8((1ull << count) - 1, from); }
inline void store_block(uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
inline void store_block(uint8_t* to, Bytes x, int64_t count) { _mm512_mask_storeu_epi8(to, (1ull << count) - 1, x); }

// Channels in an order in which packing them twice leaves them in their own; within low … high.
INLINE inline Bytes packed(const F32 x[VECTORS], Bytes low, Bytes high) {
  I32 q[4];
  UNROLLED for (int v = 0; v < 4; ++v) q[v] = to_integers(x[v]);
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  return _mm512_max_epu8(_mm512_min_epu8(bytes, high), low);
}

// The reverse of `packed`.
INLINE inline void unpacked(Bytes bytes, I32 to[VECTORS]) {
  const __m512i nought = _mm512_setzero_si512();
  const __m512i ab = _mm512_unpacklo_epi8(bytes, nought), cd = _mm512_unpackhi_epi8(bytes, nought);
  to[0] = _mm512_unpacklo_epi16(ab, nought);
  to[1] = _mm512_unpackhi_epi16(ab, nought);
  to[2] = _mm512_unpacklo_epi16(cd, nought);
  to[3] = _mm512_unpackhi_epi16(cd, nought);
}

// The same channels of GROUP pixels, side by side: vectors in the order of `packed`.
INLINE inline void interleave(const Bytes p[GROUP], Pixels to[VECTORS]) {
  const __m512i low01 = _mm512_unpacklo_epi8(p[0], p[1]), high01 = _mm512_unpackhi_epi8(p[0], p[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(p[2], p[3]), high23 = _mm512_unpackhi_epi8(p[2], p[3]);
  to[0] = _mm512_unpacklo_epi16(low01, low23);
  to[1] = _mm512_unpackhi_epi16(low01, low23);
  to[2] = _mm512_unpacklo_epi16(high01, high23);
  to[3] = _mm512_unpackhi_epi16(high01, high23);
}

}  // namespace
