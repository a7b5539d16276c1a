// The instructions that `avx512.h` uses, written out in C++: so its kernels are tested on CPUs that lack them.
//
// Each does what Intel's guide says of it, in the default rounding mode, lane by lane; `test_isa.py` compares kernels made
// of them with those made of the CPU's own.

#pragma once

#include <immintrin.h>

// The compiler declares these itself: ours have other types, and what is made from none of them another name.
#define __m512 EmulatedFloats
#define __m512i EmulatedIntegers
#define _mm512_set1_ps emulated_set1_ps
#define _mm512_setzero_ps emulated_setzero_ps
#define _mm512_loadu_ps emulated_loadu_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_set1_epi8 emulated_set1_epi8
#define _mm512_setzero_si512 emulated_setzero_si512
#define _mm512_loadu_si512 emulated_loadu_si512
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm_maskz_loadu_epi8 emulated_maskz_loadu_16_epi8
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32

namespace {

struct __m512 {
  float at[16];
};
struct __m512i {
  uint8_t at[64];
};

// `Number`s in a register, one by one
template <typename Number>
Number number(const __m512i& x, int64_t i) {
  Number to;
  std::memcpy(&to, x.at + i * sizeof(Number), sizeof(Number));
  return to;
}
template <typename Number, typename Of>
__m512i integers(const Of& of) {
  __m512i to;
  for (int64_t i = 0; i < int64_t(64 / sizeof(Number)); ++i) {
    const Number one = static_cast<Number>(of(i));
    std::memcpy(to.at + i * sizeof(Number), &one, sizeof(Number));
  }
  return to;
}
template <typename Of>
__m512 floats(const Of& of) {
  __m512 to;
  for (int64_t i = 0; i < 16; ++i) to.at[i] = of(i);
  return to;
}
template <typename Mask>
bool has(Mask mask, int64_t i) {
  return mask >> i & 1;
}

// ---- float32

__m512 _mm512_set1_ps(float x) {
  return floats([=](int64_t) { return x; });
}
__m512 _mm512_setzero_ps() { return _mm512_set1_ps(0); }
__m512 _mm512_loadu_ps(const float* from) {
  return floats([=](int64_t i) { return from[i]; });
}
__m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float* from) {
  return floats([=](int64_t i) { return has(mask, i) ? from[i] : 0.0f; });
}
void _mm512_mask_storeu_ps(float* to, __mmask16 mask, const __m512& x) {
  for (int64_t i = 0; i < 16; ++i)
    if (has(mask, i)) to[i] = x.at[i];
}
void _mm512_storeu_ps(float* to, const __m512& x) { _mm512_mask_storeu_ps(to, 0xffff, x); }
__m512 _mm512_add_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] + b.at[i]; });
}
__m512 _mm512_sub_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] - b.at[i]; });
}
__m512 _mm512_mul_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] * b.at[i]; });
}
__m512 _mm512_div_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] / b.at[i]; });
}
__m512 _mm512_fmadd_ps(const __m512& a, const __m512& b, const __m512& c) {
  return floats([&](int64_t i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
}
__m512 _mm512_min_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}
__m512 _mm512_max_ps(const __m512& a, const __m512& b) {
  return floats([&](int64_t i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
__m512 _mm512_roundscale_ps(const __m512& x, int how) {
  return floats([&](int64_t i) { return (how & 3) == _MM_FROUND_TO_NEG_INF ? std::floor(x.at[i]) : std::nearbyint(x.at[i]); });
}
__m512 _mm512_scalef_ps(const __m512& x, const __m512& n) {
  return floats([&](int64_t i) { return std::isnan(n.at[i]) ? n.at[i] : std::ldexp(x.at[i], static_cast<int>(std::floor(n.at[i]))); });
}
__m512 _mm512_mask_mov_ps(const __m512& others, __mmask16 mask, const __m512& x) {
  return floats([&](int64_t i) { return has(mask, i) ? x.at[i] : others.at[i]; });
}
__mmask16 _mm512_cmp_ps_mask(const __m512& a, const __m512& b, int) {  // greater than, the only one in use
  __mmask16 mask = 0;
  for (int64_t i = 0; i < 16; ++i) mask |= static_cast<__mmask16>((a.at[i] > b.at[i]) << i);
  return mask;
}
__m512 _mm512_shuffle_f32x4(const __m512& a, const __m512& b, int how) {
  return floats([&](int64_t i) { return (i < 8 ? a : b).at[(how >> (i / 4 * 2) & 3) * 4 + i % 4]; });
}
__m512 _mm512_permute_ps(const __m512& x, int how) {
  return floats([&](int64_t i) { return x.at[i / 4 * 4 + (how >> (i % 4 * 2) & 3)]; });
}
float _mm512_cvtss_f32(const __m512& x) { return x.at[0]; }

// ---- int32

__m512i _mm512_set1_epi32(int32_t x) {
  return integers<int32_t>([=](int64_t) { return x; });
}
__m512i _mm512_setzero_si512() { return _mm512_set1_epi32(0); }
__m512i _mm512_loadu_si512(const void* from) {
  __m512i to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}
void _mm512_storeu_si512(void* to, const __m512i& x) { std::memcpy(to, &x, sizeof(x)); }
void _mm512_mask_storeu_epi32(int32_t* to, __mmask16 mask, const __m512i& x) {
  for (int64_t i = 0; i < 16; ++i)
    if (has(mask, i)) to[i] = number<int32_t>(x, i);
}
__m512i _mm512_add_epi32(const __m512i& a, const __m512i& b) {
  return integers<uint32_t>([&](int64_t i) { return number<uint32_t>(a, i) + number<uint32_t>(b, i); });
}
__m512i _mm512_min_epi32(const __m512i& a, const __m512i& b) {
  return integers<int32_t>([&](int64_t i) { return std::min(number<int32_t>(a, i), number<int32_t>(b, i)); });
}
__m512i _mm512_max_epi32(const __m512i& a, const __m512i& b) {
  return integers<int32_t>([&](int64_t i) { return std::max(number<int32_t>(a, i), number<int32_t>(b, i)); });
}
__m512i _mm512_and_si512(const __m512i& a, const __m512i& b) {
  return integers<uint8_t>([&](int64_t i) { return a.at[i] & b.at[i]; });
}
__m512 _mm512_cvtepi32_ps(const __m512i& x) {
  return floats([&](int64_t i) { return static_cast<float>(number<int32_t>(x, i)); });
}
__m512i _mm512_cvtps_epi32(const __m512& x) {
  return integers<int32_t>([&](int64_t i) {
    const float q = std::nearbyint(x.at[i]);
    return q >= -0x1p31f && q < 0x1p31f ? static_cast<int32_t>(q) : INT32_MIN;
  });
}
__m512i _mm512_castps_si512(const __m512& x) { return _mm512_loadu_si512(x.at); }
__m512 _mm512_castsi512_ps(const __m512i& x) {
  return floats([&](int64_t i) { return number<float>(x, i); });
}
__m512i _mm512_dpbusd_epi32(const __m512i& sum, const __m512i& u, const __m512i& w) {
  return integers<uint32_t>([&](int64_t i) {
    uint32_t to = number<uint32_t>(sum, i);
    for (int64_t k = 4 * i; k < 4 * i + 4; ++k) to += static_cast<uint32_t>(u.at[k] * number<int8_t>(w, k));
    return to;
  });
}

// ---- bytes

__m128i _mm512_cvtepi32_epi8(const __m512i& x) {
  uint8_t to[16];
  for (int64_t i = 0; i < 16; ++i) to[i] = x.at[4 * i];
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(to));
}
void _mm512_mask_cvtepi32_storeu_epi8(void* to, __mmask16 mask, const __m512i& x) {
  for (int64_t i = 0; i < 16; ++i)
    if (has(mask, i)) static_cast<uint8_t*>(to)[i] = x.at[4 * i];
}
__m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* from) {
  uint8_t to[16];
  for (int64_t i = 0; i < 16; ++i) to[i] = has(mask, i) ? static_cast<const uint8_t*>(from)[i] : 0;
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(to));
}
__m512i _mm512_cvtepu8_epi32(__m128i x) {
  uint8_t from[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(from), x);
  return integers<int32_t>([&](int64_t i) { return from[i]; });
}
__m512i _mm512_set1_epi8(char x) {
  return integers<char>([=](int64_t) { return x; });
}
__m512i _mm512_maskz_loadu_epi8(__mmask64 mask, const void* from) {
  return integers<uint8_t>([=](int64_t i) { return has(mask, i) ? static_cast<const uint8_t*>(from)[i] : 0; });
}
void _mm512_mask_storeu_epi8(void* to, __mmask64 mask, const __m512i& x) {
  for (int64_t i = 0; i < 64; ++i)
    if (has(mask, i)) static_cast<uint8_t*>(to)[i] = x.at[i];
}
__m512i _mm512_min_epu8(const __m512i& a, const __m512i& b) {
  return integers<uint8_t>([&](int64_t i) { return std::min(a.at[i], b.at[i]); });
}
__m512i _mm512_max_epu8(const __m512i& a, const __m512i& b) {
  return integers<uint8_t>([&](int64_t i) { return std::max(a.at[i], b.at[i]); });
}
// In each quarter, half from a and half from b
__m512i _mm512_packs_epi32(const __m512i& a, const __m512i& b) {
  return integers<int16_t>([&](int64_t i) {
    const int64_t from = i / 8 * 4 + i % 4;
    return std::clamp<int32_t>(number<int32_t>(i % 8 < 4 ? a : b, from), INT16_MIN, INT16_MAX);
  });
}
__m512i _mm512_packus_epi16(const __m512i& a, const __m512i& b) {
  return integers<uint8_t>([&](int64_t i) {
    const int64_t from = i / 16 * 8 + i % 8;
    return std::clamp<int32_t>(number<int16_t>(i % 16 < 8 ? a : b, from), 0, UINT8_MAX);
  });
}
// In each quarter, one from a and one from b in turn, of the half of it that begins at `half`
template <typename Number>
__m512i unpacked_halves(const __m512i& a, const __m512i& b, int64_t half) {
  constexpr int64_t count = 16 / sizeof(Number);
  return integers<Number>([&](int64_t i) {
    return number<Number>(i % 2 == 0 ? a : b, i / count * count + half * count / 2 + i % count / 2);
  });
}
__m512i _mm512_unpacklo_epi8(const __m512i& a, const __m512i& b) { return unpacked_halves<uint8_t>(a, b, 0); }
__m512i _mm512_unpackhi_epi8(const __m512i& a, const __m512i& b) { return unpacked_halves<uint8_t>(a, b, 1); }
__m512i _mm512_unpacklo_epi16(const __m512i& a, const __m512i& b) { return unpacked_halves<uint16_t>(a, b, 0); }
__m512i _mm512_unpackhi_epi16(const __m512i& a, const __m512i& b) { return unpacked_halves<uint16_t>(a, b, 1); }

}  // namespace
