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
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

using at::Tensor;

constexpr int64_t BLOCK = 24;  // rows of scores kept in the cache between the two products of an attention
constexpr int64_t IN_CACHE = 4096;  // of these scores, half of the nearest cache
constexpr int64_t DEEPEST = 33024;  // 255 · 255 · DEEPEST < 2³¹: no sum of so many products leaves int32

// Of so many consecutive integers of a left row, all groups: zeros stand behind them.
inline int64_t padded(int64_t depth) { return round_up(depth, GROUP); }

constexpr int64_t PANEL = WIDE * LANES;  // columns that lie together: one tile reads no others

// The right operand [depth, columns], packed: panel by panel, [depth / GROUP][columns of the panel][GROUP]. The last may be
// narrower than the others.
struct Columns {
  int64_t depth, columns;  // padded to multiples of GROUP and LANES, with zeros
  const int8_t* values;
  const int32_t* starts;  // [columns] where the sums of a column begin: z_l (K·c − Σ r)

  // Some columns, of which the first is the first of a panel
  Columns part(int64_t first, int64_t count) const { return {depth, count, values + first * depth, starts + first}; }
};

struct Packed {
  int64_t depth, columns;
  std::vector<int8_t> values;
  std::vector<int32_t> starts;

  Columns view() const { return {depth, columns, values.data(), starts.data()}; }

  void reserve(int64_t k, int64_t n) {
    depth = padded(k);
    columns = round_up(n, LANES);
    values.resize(depth * columns);
    starts.resize(columns);
  }
};

int8_t shifted(uint8_t u) { return static_cast<int8_t>(u ^ 0x80); }

// One group of depths of `width` columns, which are padded to `padded`, [padded][GROUP] in `to`
void pack_group(int8_t* to, const uint8_t* from, int64_t height, int64_t width, int64_t padded, int64_t sk, int64_t sn) {
  int64_t column = 0;
  if (sn == 1 && height == GROUP) {  // rows lie contiguously: interleave them, sixteen columns at a time
    for (; column + LANES <= width; column += LANES) {
      const uint8_t* rows[GROUP];
      for (int64_t i = 0; i < GROUP; ++i) rows[i] = from + i * sk + column;
      weave(rows, to + column * GROUP);
    }
  }
  if (sk == 1 && height == GROUP) {  // columns lie contiguously: a group at a time
    for (; column < width; ++column) {
      std::conditional_t<GROUP == 4, uint32_t, uint16_t> group;
      std::memcpy(&group, from + column * sn, GROUP);
      group ^= static_cast<decltype(group)>(0x80808080u);
      std::memcpy(to + column * GROUP, &group, GROUP);
    }
  }
  for (; column < width; ++column)
    for (int64_t i = 0; i < GROUP; ++i) to[column * GROUP + i] = i < height ? shifted(from[i * sk + column * sn]) : 0;
  std::memset(to + width * GROUP, 0, (padded - width) * GROUP);
}

// from[k·sk + n·sn], k < depth, n < columns; c is its zero-point as a signed operand, z_left that of the left one
void pack(Packed& to, const uint8_t* from, int64_t k, int64_t n, int64_t sk, int64_t sn, int64_t c, int64_t z_left) {
  to.reserve(k, n);
  std::fill(to.starts.begin(), to.starts.end(), 0);
  for (int64_t first = 0; first < to.columns; first += PANEL) {
    const int64_t width = std::min(PANEL, to.columns - first);
    int8_t* out = to.values.data() + first * to.depth;
    for (int64_t depth = 0; depth < to.depth; depth += GROUP, out += width * GROUP) {
      pack_group(out, from + depth * sk + first * sn, std::min(GROUP, k - depth), std::min(width, n - first), width, sk, sn);
      for (int64_t column = 0; column < width; ++column)
        for (int64_t i = 0; i < GROUP; ++i) to.starts[first + column] += out[column * GROUP + i];
    }
  }
  for (int32_t& start : to.starts) start = static_cast<int32_t>(z_left * (k * c - start));
}

template <int rows, int wide>
void tile(const Left* left, int64_t stride, const int32_t* starts, const Columns& right, int32_t* out, int64_t out_stride) {
  I32 sum[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const I32 start = load(right.starts + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) sum[i][j] = add(start, every(starts[i]));
  }
  const int8_t* in = right.values;
  for (int64_t k = 0; k < right.depth; k += GROUP, in += wide * LANES * GROUP) {
    Right vector[wide];
    UNROLLED for (int j = 0; j < wide; ++j) vector[j] = load(in + j * LANES * GROUP);
    UNROLLED for (int i = 0; i < rows; ++i) {
      const Spread all = spread(left + i * stride + k);
      UNROLLED for (int j = 0; j < wide; ++j) dot(sum[i][j], all, vector[j]);
    }
  }
  UNROLLED for (int i = 0; i < rows; ++i)
    UNROLLED for (int j = 0; j < wide; ++j) store(out + i * out_stride + j * LANES, sum[i][j]);
}

// The rows that remain behind whole tiles, `rows` or fewer
template <int rows, int wide>
void rest(int64_t count, const Left* left, int64_t stride, const int32_t* starts, const Columns& right, int32_t* out,
          int64_t out_stride) {
  if (count == rows) tile<rows, wide>(left, stride, starts, right, out, out_stride);
  if constexpr (rows > 1)
    if (count < rows) rest<rows - 1, wide>(count, left, stride, starts, right, out, out_stride);
}

// All rows by one panel of columns, or the last, which is narrower; it stays in the cache meanwhile
template <int wide>
void panel(const Left* left, int64_t stride, int64_t rows, const int32_t* starts, const Columns& right, int32_t* out,
           int64_t out_stride) {
  if constexpr (wide > 1)
    if (right.columns < wide * LANES) return panel<wide - 1>(left, stride, rows, starts, right, out, out_stride);
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS)
    tile<ROWS, wide>(left + row * stride, stride, starts + row, right, out + row * out_stride, out_stride);
  if (row < rows) rest<ROWS - 1, wide>(rows - row, left + row * stride, stride, starts + row, right, out + row * out_stride, out_stride);
}

template <typename Integer>
int32_t sum_of(const Integer* values, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// out[rows, right.columns] = (left[rows, k] − z_left) · (right − c), for no more than BLOCK rows; right was packed with
// z_left and c. left is readable up to right.depth in every row
void multiply(const Left* left, int64_t stride, int64_t rows, int64_t k, int64_t c, const Columns& right, int32_t* out,
              int64_t out_stride) {
  int32_t starts[BLOCK];
  for (int64_t i = 0; i < rows; ++i) starts[i] = c == 0 ? 0 : static_cast<int32_t>(-c * sum_of(left + i * stride, k));
  for (int64_t column = 0; column < right.columns; column += PANEL)
    panel<WIDE>(left, stride, rows, starts, right.part(column, std::min(PANEL, right.columns - column)), out + column, out_stride);
}

// The rows of a left operand: where they are, if they can be read a group at a time, else a copy.
struct Rows {
  std::vector<Left> copy;

  const Left* of(const uint8_t* from, int64_t rows, int64_t k, int64_t sr, int64_t sk, int64_t& stride) {
    if constexpr (std::is_same_v<Left, uint8_t>) {
      if (sk == 1 && k == padded(k)) {
        stride = sr;
        return reinterpret_cast<const Left*>(from);
      }
    }
    stride = padded(k);
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

void write_row(const int32_t* sums, int64_t columns, const Output& as, void* to) {
  const F32 scale = every(as.scale), inverse = every(as.inverse_step), zero = every(as.zero);
  const F32 low = every(as.low), high = every(as.high);
  for (int64_t n = 0; n < columns; n += LANES) {
    const Lanes some = lanes(columns - n);
    const I32 sum = load(sums + n);  // sums are padded
    const F32 x = multiply(to_floats(sum), scale);
    if (as.raw) {
      store(static_cast<int32_t*>(to) + n, sum, some);
    } else if (as.inverse_step == 0) {
      store(static_cast<float*>(to) + n, x, some);
    } else {
      const F32 q = add(nearest(multiply(x, inverse)), zero);
      store(static_cast<uint8_t*>(to) + n, to_integers(min(max(q, low), high)), some);
    }
  }
}

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
