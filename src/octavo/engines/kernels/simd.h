// The vectors that the kernels are written in: sixteen numbers at a time, whatever the CPU has for that.
//
//     avx512.h  registers of 64 bytes, and VNNI: four products of bytes added to each sum by one instruction
//     avx2.h    two registers of 32 bytes; operands widened to 16 bits, for the products of bytes would saturate
//     plain.h   C++ alone, for all other CPUs
//
// Each has the same types and functions; results are the same, bit for bit. How to read one:
//
//     F32, I32     sixteen float32 or int32
//     Lanes        the first few of sixteen: the others are neither read nor written, and count as 0
//     Left         how an integer of a left operand, 0 … 255, lies in memory
//     GROUP        how many consecutive left integers one `dot` multiplies; weights lie [depth / GROUP][column][GROUP]
//     Right        the weights of sixteen columns, GROUP of each
//     Spread       GROUP left integers, the same for all columns
//     VECTORS      of sixteen channels make a block of bytes, `Bytes`; the order of `packed` and `interleave` within a
//                  block is that of `lowering/packing.py`
//     Pixels       GROUP left integers of each of sixteen channels
//     dot(sum, u, w)   sum += Σ u·w over GROUP, in every lane, exact modulo 2³²
//     ROWS, WIDE   of left rows, and of vectors of columns: the sums that fit into registers beside their operands

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef OCTAVO_EMULATED  // for tests, which wait for the compiler and not for the kernels
#define UNROLLED
#define INLINE
#else  // Unrolled by order: else GCC keeps the sums in memory, four times slower.
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE __attribute__((always_inline))
#endif

// Expands the name first, which these macros of torch do not.
#define OCTAVO_LIBRARY(name, m) TORCH_LIBRARY(name, m)
#define OCTAVO_FRAGMENT(name, m) TORCH_LIBRARY_FRAGMENT(name, m)
#define OCTAVO_IMPLEMENTATION(name, key, m) TORCH_LIBRARY_IMPL(name, key, m)

namespace {

constexpr int64_t LANES = 16;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

#if defined(OCTAVO_AVX512)
#include "avx512.h"
#elif defined(OCTAVO_AVX2)
#include "avx2.h"
#else
#include "plain.h"
#endif
