// What the kernels share: the vector width, and the instruction set they are written for.

#pragma once

#include <cstdint>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define OCTAVO_VNNI 1
#endif

// Unrolled by order: else GCC keeps the sums in memory, four times slower.
#define UNROLLED _Pragma("GCC unroll 16")

constexpr int64_t LANES = 16;  // int32 sums in a vector register

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#ifdef OCTAVO_VNNI
// The lanes below `count` of a vector that begins `at` lanes into a row.
inline __mmask16 lanes(int64_t count, int64_t at) {
  const int64_t left = count - at;
  return left >= LANES ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}
#endif
