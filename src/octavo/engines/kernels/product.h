// Products of bytes: the right operand packed, the left one in rows, sums in int32; and writing them as real numbers.
//
// Operands are uint8 with a zero-point: real = scale · (u − z). Signed integers arrive shifted by 128. Inside, the left
// operand stays unsigned and the right one becomes signed, r = u − 128, as the dot-product instructions want it:
//
//     Σ (u − z_l)(r − c)  =  [−c Σ u]  +  [z_l (K·c − Σ r)]  +  Σ u·r          c = z_r − 128
//
// A sum begins with the two corrections, of its row and of its column, and so is exact when it ends: they are int32 as it
// is, and all of it wraps around modulo 2³², so that only the result must fit. Everything after a sum is float32, rounded
// once, to nearest, ties to even.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vnni.h"

namespace {

using at::Tensor;

constexpr int64_t ROWS = 6;    // of the left operand in registers at once: 6 × 4 sums, 4 right vectors, 1 left: 29 of 32
constexpr int64_t WIDE = 4;    // vectors of the right operand in registers at once
constexpr int64_t BLOCK = 24;  // rows of scores kept in the cache between the two products of an attention
constexpr int64_t IN_CACHE = 4096;  // of these scores, half of the nearest cache
constexpr int64_t DEEPEST = 33024;  // 255 · 255 · DEEPEST < 2³¹: no sum of so many products leaves int32

// The right operand [depth, columns], packed: four consecutive depths of one column stand side by side.
struct Columns {
  int64_t depth, columns;  // padded to multiples of 4 and LANES, with zeros
  int64_t stride;          // columns of the whole, if these are a part
  const int8_t* values;    // [depth / 4][stride][4]
  const int32_t* starts;   // [columns] where the sums of a column begin: z_l (K·c − Σ r)
};

struct Packed {
  int64_t depth, columns;
  std::vector<int8_t> values;
  std::vector<int32_t> starts;

  Columns view() const { return {depth, columns, columns, values.data(), starts.data()}; }

  void reserve(int64_t k, int64_t n) {
    depth = round_up(k, 4);
    columns = round_up(n, LANES);
    values.resize(depth * columns);
    starts.resize(columns);
  }
};

int8_t shifted(uint8_t u) { return static_cast<int8_t>(u ^ 0x80); }

void pack_group(Packed& to, int64_t group, const uint8_t* from, int64_t k, int64_t n, int64_t sk, int64_t sn) {
  int8_t* out = to.values.data() + group * to.columns * 4;
  const int64_t first = group * 4, height = std::min<int64_t>(4, k - first);
  int64_t column = 0;
#ifdef OCTAVO_VNNI
  if (sn == 1 && height == 4) {  // rows lie contiguously: interleave four of them, sixteen columns at a time
    const __m128i flip = _mm_set1_epi8(static_cast<char>(0x80));
    for (; column + 16 <= n; column += 16) {
      __m128i row[4];
      for (int i = 0; i < 4; ++i) {
        const auto* at = reinterpret_cast<const __m128i*>(from + (first + i) * sk + column);
        row[i] = _mm_xor_si128(_mm_loadu_si128(at), flip);
      }
      const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
      const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
      auto* at = reinterpret_cast<__m128i*>(out + column * 4);
      _mm_storeu_si128(at + 0, _mm_unpacklo_epi16(low01, low23));
      _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(low01, low23));
      _mm_storeu_si128(at + 2, _mm_unpacklo_epi16(high01, high23));
      _mm_storeu_si128(at + 3, _mm_unpackhi_epi16(high01, high23));
    }
  }
#endif
  if (sk == 1 && height == 4) {  // columns lie contiguously: four bytes at a time
    for (; column < n; ++column) {
      uint32_t four;
      std::memcpy(&four, from + column * sn + first, 4);
      four ^= 0x80808080u;
      std::memcpy(out + column * 4, &four, 4);
    }
  }
  for (; column < n; ++column)
    for (int64_t i = 0; i < 4; ++i)
      out[column * 4 + i] = i < height ? shifted(from[(first + i) * sk + column * sn]) : 0;
  std::memset(out + n * 4, 0, (to.columns - n) * 4);
}

// from[k·sk + n·sn], k < depth, n < columns; c is its zero-point as a signed operand, z_left that of the left one
void pack(Packed& to, const uint8_t* from, int64_t k, int64_t n, int64_t sk, int64_t sn, int64_t c, int64_t z_left) {
  to.reserve(k, n);
  for (int64_t group = 0; group < to.depth / 4; ++group) pack_group(to, group, from, k, n, sk, sn);
  std::fill(to.starts.begin(), to.starts.end(), 0);
  for (int64_t group = 0; group < to.depth / 4; ++group) {
    const int8_t* in = to.values.data() + group * to.columns * 4;
    for (int64_t column = 0; column < to.columns; ++column)
      to.starts[column] += in[column * 4] + in[column * 4 + 1] + in[column * 4 + 2] + in[column * 4 + 3];
  }
  for (int32_t& start : to.starts) start = static_cast<int32_t>(z_left * (k * c - start));
}

#ifdef OCTAVO_VNNI
template <int rows, int wide>
void tile(const uint8_t* left, int64_t stride, const int32_t* starts, const Columns& right, int64_t column, int32_t* out,
          int64_t out_stride) {
  __m512i sum[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const __m512i start = _mm512_loadu_si512(right.starts + column + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) sum[i][j] = _mm512_add_epi32(start, _mm512_set1_epi32(starts[i]));
  }
  const int8_t* in = right.values + column * 4;
  for (int64_t k = 0; k < right.depth; k += 4, in += right.stride * 4) {
    __m512i vector[wide];
    UNROLLED for (int j = 0; j < wide; ++j) vector[j] = _mm512_loadu_si512(in + j * LANES * 4);
    UNROLLED for (int i = 0; i < rows; ++i) {
      int32_t four;
      std::memcpy(&four, left + i * stride + k, 4);
      const __m512i all = _mm512_set1_epi32(four);
      UNROLLED for (int j = 0; j < wide; ++j) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], all, vector[j]);
    }
  }
  UNROLLED for (int i = 0; i < rows; ++i)
    UNROLLED for (int j = 0; j < wide; ++j)
      _mm512_storeu_si512(out + i * out_stride + column + j * LANES, sum[i][j]);
}

#else
template <int rows, int wide>
void tile(const uint8_t* left, int64_t stride, const int32_t* starts, const Columns& right, int64_t column, int32_t* out,
          int64_t out_stride) {
  constexpr int64_t width = wide * LANES;
  for (int i = 0; i < rows; ++i) {
    auto* sum = reinterpret_cast<uint32_t*>(out + i * out_stride + column);  // unsigned: those may wrap around
    for (int64_t n = 0; n < width; ++n)
      sum[n] = static_cast<uint32_t>(right.starts[column + n]) + static_cast<uint32_t>(starts[i]);
    for (int64_t k = 0; k < right.depth; k += 4) {
      const uint8_t* u = left + i * stride + k;
      const int8_t* r = right.values + k * right.stride + 4 * column;
      for (int64_t n = 0; n < width; ++n)
        sum[n] += u[0] * r[4 * n] + u[1] * r[4 * n + 1] + u[2] * r[4 * n + 2] + u[3] * r[4 * n + 3];
    }
  }
}
#endif

// All rows by a few columns, which stay in the cache meanwhile
template <int wide>
void panel(const uint8_t* left, int64_t stride, int64_t rows, const int32_t* starts, const Columns& right, int64_t column,
           int32_t* out, int64_t out_stride) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS)
    tile<ROWS, wide>(left + row * stride, stride, starts + row, right, column, out + row * out_stride, out_stride);
  constexpr decltype(&tile<1, wide>) REST[ROWS] = {nullptr,       tile<1, wide>, tile<2, wide>,
                                                   tile<3, wide>, tile<4, wide>, tile<5, wide>};
  if (row < rows)
    REST[rows - row](left + row * stride, stride, starts + row, right, column, out + row * out_stride, out_stride);
}

int32_t sum_of(const uint8_t* values, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// out[rows, right.columns] = (left[rows, k] − z_left) · (right − c), for no more than BLOCK rows; right was packed with
// z_left and c. left is readable up to right.depth in every row
void multiply(const uint8_t* left, int64_t stride, int64_t rows, int64_t k, int64_t c, const Columns& right, int32_t* out,
              int64_t out_stride) {
  int32_t starts[BLOCK];
  for (int64_t i = 0; i < rows; ++i) starts[i] = c == 0 ? 0 : static_cast<int32_t>(-c * sum_of(left + i * stride, k));
  int64_t column = 0;
  for (; column + WIDE * LANES <= right.columns; column += WIDE * LANES)
    panel<WIDE>(left, stride, rows, starts, right, column, out, out_stride);
  for (; column + 2 * LANES <= right.columns; column += 2 * LANES)
    panel<2>(left, stride, rows, starts, right, column, out, out_stride);
  for (; column < right.columns; column += LANES) panel<1>(left, stride, rows, starts, right, column, out, out_stride);
}

// The rows of a left operand: where they are, if they can be read four bytes at a time, else a padded copy.
struct Rows {
  std::vector<uint8_t> copy;

  const uint8_t* of(const uint8_t* from, int64_t rows, int64_t k, int64_t sr, int64_t sk, int64_t& stride) {
    if (sk == 1 && k % 4 == 0) {
      stride = sr;
      return from;
    }
    stride = round_up(k, 4);
    copy.assign(rows * stride, 0);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < k; ++i) copy[row * stride + i] = from[row * sr + i * sk];
    return copy.data();
  }
};

struct Output {
  float scale;          // of the sums
  float inverse_step;   // of the integers that are written; 0 for float32
  float zero, low, high;
  bool raw = false;     // the sums themselves, in int32
};

#ifdef OCTAVO_VNNI
void write_row(const int32_t* sums, int64_t columns, const Output& as, void* to) {
  const __m512 scale = _mm512_set1_ps(as.scale);
  const __m512 inverse = _mm512_set1_ps(as.inverse_step), zero = _mm512_set1_ps(as.zero);
  const __m512 low = _mm512_set1_ps(as.low), high = _mm512_set1_ps(as.high);
  for (int64_t n = 0; n < columns; n += LANES) {
    const __mmask16 mask = lanes(columns, n);
    const __m512i sum = _mm512_loadu_si512(sums + n);  // sums are padded
    __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    if (as.raw) {
      _mm512_mask_storeu_epi32(static_cast<int32_t*>(to) + n, mask, sum);
    } else if (as.inverse_step == 0) {
      _mm512_mask_storeu_ps(static_cast<float*>(to) + n, mask, x);
    } else {
      x = _mm512_add_ps(_mm512_roundscale_ps(_mm512_mul_ps(x, inverse), 8), zero);
      const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, low), high));
      _mm512_mask_cvtepi32_storeu_epi8(static_cast<uint8_t*>(to) + n, mask, q);
    }
  }
}
#else
void write_row(const int32_t* sums, int64_t columns, const Output& as, void* to) {
  for (int64_t n = 0; n < columns; ++n) {
    const float x = static_cast<float>(sums[n]) * as.scale;
    if (as.raw) {
      static_cast<int32_t*>(to)[n] = sums[n];
    } else if (as.inverse_step == 0) {
      static_cast<float*>(to)[n] = x;
    } else {
      const float q = std::nearbyint(x * as.inverse_step) + as.zero;
      static_cast<uint8_t*>(to)[n] = static_cast<uint8_t>(std::min(std::max(q, as.low), as.high));
    }
  }
}
#endif

void* at_row(const Tensor& out, int64_t b, int64_t h, int64_t row) {
  const int64_t offset = b * out.stride(0) + h * out.stride(1) + row * out.stride(2);
  return static_cast<char*>(out.data_ptr()) + offset * out.element_size();
}

const uint8_t* bytes(const Tensor& t, int64_t b, int64_t h) {
  return t.const_data_ptr<uint8_t>() + b * t.stride(0) + h * t.stride(1);
}

// How many parts the rows of one matrix are cut into, so that every thread has work.
int64_t parts(int64_t matrices, int64_t rows) {
  const int64_t wanted = (at::get_num_threads() + matrices - 1) / std::max<int64_t>(matrices, 1);
  return std::max<int64_t>(1, std::min(wanted, (rows + BLOCK - 1) / BLOCK));
}

}  // namespace
