// Octavo's integer kernels for the CPU, as operators that Inductor calls.
//
//     int8_linear, int8_convolution   oneDNN's, by way of torch's operators, with weights packed once and remembered
//     int8_matmul, int8_attention     our own: torch has none for two activations
//     int8_convolutions               our own, in convolution.cpp
//
// Operands are uint8 with a zero-point: real = scale · (u − z). Signed integers arrive shifted by 128. Inside, the left
// operand stays unsigned and the right one becomes signed, r = u − 128, as the dot-product instructions want it:
//
//     Σ (u − z_l)(r − c)  =  [−c Σ u]  +  [z_l (K·c − Σ r)]  +  Σ u·r          c = z_r − 128
//
// A sum begins with the two corrections, of its row and of its column, and so is exact when it ends: they are int32 as it
// is, and all of it wraps around modulo 2³², so that only the result must fit. Everything after a sum is float32, rounded
// once, to nearest, ties to even.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
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
struct Packed {
  int64_t depth, columns;        // padded to multiples of 4 and LANES, with zeros
  std::vector<int8_t> values;    // [depth / 4][columns][4]
  std::vector<int32_t> starts;   // [columns] where the sums of a column begin: z_l (K·c − Σ r)

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
void tile(const uint8_t* left, int64_t stride, const int32_t* starts, const Packed& right, int64_t column, int32_t* out,
          int64_t out_stride) {
  __m512i sum[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const __m512i start = _mm512_loadu_si512(right.starts.data() + column + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) sum[i][j] = _mm512_add_epi32(start, _mm512_set1_epi32(starts[i]));
  }
  const int8_t* in = right.values.data() + column * 4;
  for (int64_t k = 0; k < right.depth; k += 4, in += right.columns * 4) {
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

template <int rows>
void stripe(const uint8_t* left, int64_t stride, const int32_t* starts, const Packed& right, int32_t* out,
            int64_t out_stride) {
  int64_t column = 0;
  for (; column + WIDE * LANES <= right.columns; column += WIDE * LANES)
    tile<rows, WIDE>(left, stride, starts, right, column, out, out_stride);
  for (; column + 2 * LANES <= right.columns; column += 2 * LANES)
    tile<rows, 2>(left, stride, starts, right, column, out, out_stride);
  for (; column < right.columns; column += LANES) tile<rows, 1>(left, stride, starts, right, column, out, out_stride);
}
#else
template <int rows>
void stripe(const uint8_t* left, int64_t stride, const int32_t* starts, const Packed& right, int32_t* out,
            int64_t out_stride) {
  for (int i = 0; i < rows; ++i) {
    auto* sum = reinterpret_cast<uint32_t*>(out + i * out_stride);  // unsigned: those may wrap around
    for (int64_t n = 0; n < right.columns; ++n)
      sum[n] = static_cast<uint32_t>(right.starts[n]) + static_cast<uint32_t>(starts[i]);
    for (int64_t k = 0; k < right.depth; k += 4) {
      const uint8_t* u = left + i * stride + k;
      const int8_t* r = right.values.data() + k * right.columns;
      for (int64_t n = 0; n < right.columns; ++n)
        sum[n] += u[0] * r[4 * n] + u[1] * r[4 * n + 1] + u[2] * r[4 * n + 2] + u[3] * r[4 * n + 3];
    }
  }
}
#endif

int32_t sum_of(const uint8_t* values, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// out[rows, right.columns] = (left[rows, k] − z_left) · (right − c), for no more than BLOCK rows; right was packed with
// z_left and c. left is readable up to right.depth in every row
void multiply(const uint8_t* left, int64_t stride, int64_t rows, int64_t k, int64_t c, const Packed& right, int32_t* out,
              int64_t out_stride) {
  int32_t starts[BLOCK];
  for (int64_t i = 0; i < rows; ++i) starts[i] = c == 0 ? 0 : static_cast<int32_t>(-c * sum_of(left + i * stride, k));
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS)
    stripe<ROWS>(left + row * stride, stride, starts + row, right, out + row * out_stride, out_stride);
  constexpr decltype(&stripe<1>) REST[ROWS] = {nullptr, stripe<1>, stripe<2>, stripe<3>, stripe<4>, stripe<5>};
  if (row < rows) REST[rows - row](left + row * stride, stride, starts + row, right, out + row * out_stride, out_stride);
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

constexpr float LOG2_E = 1.44269504f;
constexpr float LEAST = -100;  // of the exponents in a softmax: 2 to this is no weight, and one over it no infinity

#ifdef OCTAVO_VNNI
// 2ᵗ for t ≤ 0, relative error 3e-6: 2ᶠ by a minimax polynomial, f = t − ⌊t⌋, times 2 to the ⌊t⌋. NaN, which is what
// remains of −∞ − −∞ where everything is masked, counts as LEAST.
__m512 power_of_two(__m512 t) {
  t = _mm512_max_ps(t, _mm512_set1_ps(LEAST));
  const __m512 f = _mm512_sub_ps(t, _mm512_roundscale_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  __m512 e = _mm512_set1_ps(1.353416724e-2f);
  for (const float c : {5.201146191e-2f, 2.414427561e-1f, 6.930038346e-1f, 1.000002593f})
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(e, t);
}
#endif

// How the scores of one query become weights: 2 to the (sum · scale + shift + bias · log₂ e), over the total of these, on
// integers of 1 / inverse_step.
struct Softmax {
  float scale, inverse_step, highest;
};

// The scores of some queries: sums int32 [rows, padded], of which `columns` count, → weights uint8 [rows, padded], zeros
// behind `columns`. bias float32 [rows, columns], its rows bias_stride apart, may be null. Each pass goes over all rows
// before the next one: else it would wait for the maximum and for the total of every row.
void softmax(int32_t* sums, int64_t rows, const float* shifts, int64_t columns, int64_t padded, const float* bias,
             int64_t bias_stride, const Softmax& by, uint8_t* weights) {
  auto* scores = reinterpret_cast<float*>(sums);
  float of_row[BLOCK];  // the maximum, then the factor
#ifdef OCTAVO_VNNI
  const auto each = [&](const auto& step) {
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) step(i, static_cast<__mmask16>(0xffff));
    if (i < columns) step(i, lanes(columns, i));
  };
  const __m512 scale = _mm512_set1_ps(by.scale), log2_e = _mm512_set1_ps(LOG2_E), limit = _mm512_set1_ps(by.highest);
  for (int64_t row = 0; row < rows; ++row) {
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    each([&](int64_t i, __mmask16 mask) {
      __m512 score = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, sums + row * padded + i));
      score = _mm512_fmadd_ps(score, scale, _mm512_maskz_loadu_ps(mask, shifts + i));
      if (bias != nullptr)
        score = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, bias + row * bias_stride + i), log2_e, score);
      most = _mm512_mask_max_ps(most, mask, most, score);
      _mm512_mask_storeu_ps(scores + row * padded + i, mask, score);
    });
    of_row[row] = _mm512_reduce_max_ps(most);
  }
  for (int64_t row = 0; row < rows; ++row) {
    __m512 all = _mm512_setzero_ps();
    const __m512 top = _mm512_set1_ps(of_row[row]);
    each([&](int64_t i, __mmask16 mask) {
      float* const at = scores + row * padded + i;
      const __m512 e = power_of_two(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, at), top));
      all = _mm512_mask_add_ps(all, mask, all, e);
      _mm512_mask_storeu_ps(at, mask, e);
    });
    of_row[row] = by.inverse_step / _mm512_reduce_add_ps(all);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 factor = _mm512_set1_ps(of_row[row]);
    for (int64_t i = 0; i < padded; i += LANES) {
      const __m512 e = _mm512_maskz_loadu_ps(lanes(columns, i), scores + row * padded + i);
      const __m512i p = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(e, factor), limit));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(weights + row * padded + i), _mm512_cvtepi32_epi8(p));
    }
  }
#else
  for (int64_t row = 0; row < rows; ++row) {
    float total = 0, &highest = of_row[row] = -std::numeric_limits<float>::infinity();
    float* const at = scores + row * padded;
    for (int64_t i = 0; i < columns; ++i) {
      const float added = bias == nullptr ? 0.0f : bias[row * bias_stride + i] * LOG2_E;
      at[i] = static_cast<float>(sums[row * padded + i]) * by.scale + shifts[i] + added;
      highest = std::max(highest, at[i]);
    }
    for (int64_t i = 0; i < columns; ++i) {
      const float t = at[i] - highest;
      total += at[i] = std::exp2(t > LEAST ? t : LEAST);
    }
    const float factor = by.inverse_step / total;
    for (int64_t i = 0; i < padded; ++i)
      weights[row * padded + i] = i < columns ? static_cast<uint8_t>(std::nearbyint(std::min(at[i] * factor, by.highest))) : 0;
  }
#endif
}

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

// left [B, H, M, K] · right [B, H, K, N] → [B, H, M, N], float32, or int32 if `as` says raw; K up to DEEPEST
Tensor product(const Tensor& left, int64_t z_left, const Tensor& right, int64_t z_right, const Output& as) {
  const int64_t B = left.size(0), H = left.size(1), M = left.size(2), K = left.size(3), N = right.size(3);
  const int64_t c = z_right - 128;
  Tensor out = at::empty({B, H, M, N}, left.options().dtype(as.raw ? at::kInt : at::kFloat));
  const int64_t cut = parts(B * H, M), height = round_up((M + cut - 1) / cut, ROWS);
  at::parallel_for(0, B * H * cut, 1, [&](int64_t begin, int64_t end) {
    Packed packed;
    Rows rows;
    std::vector<int32_t> sums;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / cut / H, h = task / cut % H, first = task % cut * height;
      if (task == begin || task % cut == 0) {
        pack(packed, bytes(right, b, h), K, N, right.stride(2), right.stride(3), c, z_left);
        sums.resize(BLOCK * packed.columns);
      }
      for (int64_t row = first; row < std::min(first + height, M); row += BLOCK) {
        const int64_t count = std::min({BLOCK, M - row, first + height - row});
        int64_t stride;
        const uint8_t* from = rows.of(bytes(left, b, h) + row * left.stride(2), count, K, left.stride(2), left.stride(3), stride);
        multiply(from, stride, count, K, c, packed, sums.data(), packed.columns);
        for (int64_t i = 0; i < count; ++i) write_row(sums.data() + i * packed.columns, N, as, at_row(out, b, h, row + i));
      }
    }
  });
  return out;
}

// left [B, H, M, K] · right [B, H, K, N] → float32 [B, H, M, N]; exact sums of any depth, scaled
Tensor matmul(const Tensor& left, int64_t z_left, const Tensor& right, int64_t z_right, double scale) {
  TORCH_CHECK(left.dim() == 4 && right.dim() == 4 && left.size(3) == right.size(2) && left.size(0) == right.size(0) &&
                  left.size(1) == right.size(1),
              "int8 matmul: shapes do not fit");
  const int64_t K = left.size(3);
  if (K <= DEEPEST) return product(left, z_left, right, z_right, Output{static_cast<float>(scale), 0, 0, 0, 0});
  Tensor sum;
  for (int64_t first = 0; first < K; first += DEEPEST) {
    const int64_t count = std::min(DEEPEST, K - first);
    const Tensor part = product(left.narrow(3, first, count), z_left, right.narrow(2, first, count), z_right,
                                Output{0, 0, 0, 0, 0, true}).to(at::kLong);
    sum = sum.defined() ? sum.add(part) : part;
  }
  return sum.to(at::kDouble).mul(scale).to(at::kFloat);
}

// softmax(score_scale · q·kᵀ + bias) · v, the weights between rounded to integers of `weight_step`.
// q [B, H, S, D], k [B, H, T, D], v [B, H, T, E] → [B, H, S, E] that lies in memory as [B, S, H, E];
// uint8 of out_step, or float32 if that is 0
Tensor attention(const Tensor& q, int64_t z_q, const Tensor& k, int64_t z_k, const Tensor& v, int64_t z_v,
                 const std::optional<Tensor>& bias, double score_scale, double weight_step, int64_t weight_highest,
                 double value_scale, double out_step, int64_t out_zero, int64_t out_low, int64_t out_high) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(3) == k.size(3) && k.size(2) == v.size(2) &&
                  q.sizes().slice(0, 2) == k.sizes().slice(0, 2) && q.sizes().slice(0, 2) == v.sizes().slice(0, 2),
              "int8 attention: shapes do not fit");
  TORCH_CHECK(q.size(3) <= DEEPEST, "int8 attention: sums of so many products leave int32");
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), D = q.size(3), T = k.size(2), E = v.size(3);
  const int64_t c_k = z_k - 128, c_v = z_v - 128;
  const auto dtype = out_step == 0 ? at::kFloat : at::kByte;
  Tensor out = at::empty_strided({B, H, S, E}, {S * H * E, E, H * E, 1}, q.options().dtype(dtype));
  const Softmax by{static_cast<float>(score_scale) * LOG2_E, static_cast<float>(1 / weight_step), static_cast<float>(weight_highest)};
  const Output as{static_cast<float>(value_scale * weight_step), out_step == 0 ? 0.0f : static_cast<float>(1 / out_step), static_cast<float>(out_zero),
                  static_cast<float>(out_low), static_cast<float>(out_high)};
  Tensor added;  // bias, with its keys side by side; strides of 0 where it is the same for all
  int64_t strides[3] = {0, 0, 0};
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 4 && bias->scalar_type() == at::kFloat, "int8 attention: bias must be float32 [B, H, S, T]");
    const int64_t whole[4] = {B, H, S, T};
    for (int i = 0; i < 4; ++i)
      TORCH_CHECK(bias->size(i) == 1 || bias->size(i) == whole[i], "int8 attention: bias does not fit the scores");
    added = bias->expand({bias->size(0), bias->size(1), bias->size(2), T}).contiguous();
    for (int i = 0; i < 3; ++i) strides[i] = added.size(i) == 1 ? 0 : added.stride(i);
  }
  const float* const added_from = bias.has_value() ? added.const_data_ptr<float>() : nullptr;
  const int64_t cut = parts(B * H, S), height = round_up((S + cut - 1) / cut, ROWS);
  at::parallel_for(0, B * H * cut, 1, [&](int64_t begin, int64_t end) {
    Packed keys, values;
    Rows rows;
    std::vector<float> shifts;  // [T] of the bias, where it is the same for all queries
    std::vector<int32_t> scores, sums;
    std::vector<uint8_t> weights;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / cut / H, h = task / cut % H, first = task % cut * height;
      const float* const bias_row = added_from == nullptr ? nullptr : added_from + b * strides[0] + h * strides[1];
      if (task == begin || task % cut == 0) {
        pack(keys, bytes(k, b, h), D, T, k.stride(3), k.stride(2), c_k, z_q);
        pack(values, bytes(v, b, h), T, E, v.stride(2), v.stride(3), c_v, 0);
        shifts.assign(keys.columns, 0);
        if (bias_row != nullptr && strides[2] == 0)
          for (int64_t n = 0; n < T; ++n) shifts[n] = bias_row[n] * LOG2_E;
        scores.resize(BLOCK * keys.columns);
        weights.resize(BLOCK * keys.columns);
        sums.resize(BLOCK * values.columns);
      }
      for (int64_t row = first; row < std::min(first + height, S); row += BLOCK) {
        const int64_t count = std::min({BLOCK, S - row, first + height - row});
        int64_t stride;
        const uint8_t* from = rows.of(bytes(q, b, h) + row * q.stride(2), count, D, q.stride(2), q.stride(3), stride);
        multiply(from, stride, count, D, c_k, keys, scores.data(), keys.columns);
        const int64_t together = std::max<int64_t>(1, IN_CACHE / keys.columns);
        for (int64_t i = 0; i < count; i += together) {
          const float* own = bias_row == nullptr || strides[2] == 0 ? nullptr : bias_row + (row + i) * strides[2];
          softmax(scores.data() + i * keys.columns, std::min(together, count - i), shifts.data(), T, keys.columns, own,
                  strides[2], by, weights.data() + i * keys.columns);
        }
        multiply(weights.data(), keys.columns, count, T, c_v, values, sums.data(), values.columns);
        for (int64_t i = 0; i < count; ++i) write_row(sums.data() + i * values.columns, E, as, at_row(out, b, h, row + i));
      }
    }
  });
  return out;
}

// Packed weights, made when a weight is first used. A compiled graph holds plain int8 tensors, which it can store and
// load; oneDNN wants them in an order that depends on the machine. An entry is valid as long as the storage it was made
// from lives: a weak pointer tells, where an address could be given to another weight later.
class PackedWeights {
 public:
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    Tensor packed, zeros;
  };

  // x_scale, x_zero  of what the weight is multiplied with, if the packing depends on it
  template <typename Pack>
  std::pair<Tensor, Tensor> get(const Tensor& weight, double x_scale, int64_t x_zero, const Pack& pack) {
    const auto storage = weight.storage().getWeakStorageImpl();
    const Key key{storage._unsafe_get_target(), weight.storage_offset(), x_scale, x_zero};
    const std::lock_guard<std::mutex> guard(mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end() || found->second.storage.expired()) {
      forget_expired();
      Tensor zeros = at::zeros({weight.size(0)}, weight.options().dtype(at::kInt));
      found = entries_.insert_or_assign(key, Entry{storage, pack(), zeros}).first;
    }
    return {found->second.packed, found->second.zeros};
  }

 private:
  using Key = std::tuple<const void*, int64_t, double, int64_t>;

  void forget_expired() {
    for (auto it = entries_.begin(); it != entries_.end();)
      it = it->second.storage.expired() ? entries_.erase(it) : std::next(it);
  }

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
};

PackedWeights& packed_weights() {
  static PackedWeights* const weights = new PackedWeights;  // never destroyed: tensors outlive static objects badly
  return *weights;
}

template <typename... Arguments>
Tensor call(const char* name, Arguments&&... arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack;
  (stack.emplace_back(std::forward<Arguments>(arguments)), ...);
  op.callBoxed(&stack);
  return stack.front().toTensor();
}

c10::IValue dtype_of(bool to_uint8) { return static_cast<int64_t>(to_uint8 ? at::kByte : at::kFloat); }

c10::IValue scalars(at::ArrayRef<double> values) {
  c10::List<std::optional<at::Scalar>> list;
  for (const double value : values) list.push_back(at::Scalar(value));
  return list;
}

// x uint8 [..., K] · weight int8 [N, K]ᵀ, scaled by x_scale · scales [N], plus bias [N], through `post` → [..., N],
// float32 or uint8 of out_scale and out_zero
Tensor linear(const Tensor& x, double x_scale, int64_t x_zero, const Tensor& weight, const Tensor& scales,
              const std::optional<Tensor>& bias, double out_scale, int64_t out_zero, bool to_uint8, c10::string_view post,
              at::ArrayRef<double> post_arguments, c10::string_view algorithm) {
  const auto [packed, zeros] = packed_weights().get(
      weight, 0, 0, [&] { return call("onednn::qlinear_prepack", weight, c10::IValue()); });
  return call("onednn::qlinear_pointwise", x, x_scale, x_zero, packed, scales, zeros, bias, out_scale, out_zero, dtype_of(to_uint8),
              std::string(post), scalars(post_arguments), std::string(algorithm));
}

// x uint8 [B, C, ...] with weight int8 [O, C / groups, ...], likewise → [B, O, ...], channels last in memory
Tensor convolution(const Tensor& x, double x_scale, int64_t x_zero, const Tensor& weight, const Tensor& scales,
                   const std::optional<Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups, double out_scale, int64_t out_zero, bool to_uint8, c10::string_view post,
                   at::ArrayRef<double> post_arguments) {
  const auto [packed, zeros] = packed_weights().get(weight, x_scale, x_zero, [&] {
    return call("onednn::qconv_prepack", weight, scales, x_scale, x_zero, stride, padding, dilation, groups, c10::IValue());
  });
  const char* name = weight.dim() == 3 ? "onednn::qconv1d_pointwise" : "onednn::qconv2d_pointwise";
  const Tensor out = call(name, x, x_scale, x_zero, packed, scales, zeros, bias, stride, padding, dilation, groups, out_scale,
                          out_zero, dtype_of(to_uint8), std::string(post), scalars(post_arguments), c10::IValue());
  return out.movedim(1, -1).contiguous().movedim(-1, 1);  // already so, but for sizes of 1
}

}  // namespace

TORCH_LIBRARY(octavo, m) {
  m.def(
      "int8_linear(Tensor x, float x_scale, int x_zero, Tensor weight, Tensor scales, Tensor? bias, float out_scale, "
      "int out_zero, bool to_uint8, str post, float[] post_arguments, str algorithm) -> Tensor");
  m.def(
      "int8_convolution(Tensor x, float x_scale, int x_zero, Tensor weight, Tensor scales, Tensor? bias, int[] stride, "
      "int[] padding, int[] dilation, int groups, float out_scale, int out_zero, bool to_uint8, str post, "
      "float[] post_arguments) -> Tensor");
  m.def("int8_matmul(Tensor left, int z_left, Tensor right, int z_right, float scale) -> Tensor");
  m.def(
      "int8_attention(Tensor q, int z_q, Tensor k, int z_k, Tensor v, int z_v, Tensor? bias, float score_scale, "
      "float weight_step, int weight_highest, float value_scale, float out_step, int out_zero, int out_low, "
      "int out_high) -> Tensor");
}

TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("int8_linear", linear);
  m.impl("int8_convolution", convolution);
  m.impl("int8_matmul", matmul);
  m.impl("int8_attention", attention);
}
