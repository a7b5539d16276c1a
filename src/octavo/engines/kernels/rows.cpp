// Products whose left rows and right columns are rounded on scales of their own, taken from their largest values:
//
//     x, float32 ─▶ max|row| ─▶ bytes, in the cache ─▶ sums ─▶ · scale of the row · scale of the column + bias ─▶ float32
//
// Nothing is known of the range of x before. A row that holds NaN or infinity returns NaN, as in float, and spoils no other.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <optional>

#include "packed_weights.h"
#include "rounding.h"
#include "softmax.h"

namespace {

constexpr int64_t LEFT = 1 << 18, RIGHT = 1 << 17;  // bytes of a linear's operands that stay in the second cache together

// What is done to the results of a linear: nothing, max(x, 0), or x · Φ(x).
enum class Post { none, relu, gelu };

#ifdef OCTAVO_VNNI
// x · Φ(x): erfc by formula 7.1.26 of Abramowitz and Stegun, whose error is below 1.5e-7
__m512 gelu(__m512 x) {
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f)), one = _mm512_set1_ps(1);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 tail = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(c));
  const __m512 power = power_of_two(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-LOG2_E)));
  tail = _mm512_mul_ps(_mm512_mul_ps(tail, t), _mm512_mul_ps(power, _mm512_set1_ps(0.5f)));  // Φ(−|x|)
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, positive, one, tail));
}

template <Post post>
__m512 finished(__m512 x) {
  if constexpr (post == Post::relu) return _mm512_max_ps(_mm512_setzero_ps(), x);  // NaN, the second, stays
  if constexpr (post == Post::gelu) return gelu(x);
  return x;
}
#else
template <Post post>
float finished(float x) {
  if constexpr (post == Post::relu) return x < 0 ? 0 : x;
  if constexpr (post == Post::gelu) return x * 0.5f * std::erfc(-x * 0.70710678f);
  return x;
}
#endif

// sums of one row, times `scale` and the scales of their columns, plus bias, if there is one, and what comes then
template <Post post = Post::none>
void write_scaled(const int32_t* sums, int64_t columns, float scale, const float* scales, const float* bias, float* to) {
#ifdef OCTAVO_VNNI
  const __m512 all = _mm512_set1_ps(scale);
  for (int64_t n = 0; n < columns; n += LANES) {
    const __mmask16 mask = lanes(columns, n);
    const __m512 factor = _mm512_mul_ps(all, _mm512_maskz_loadu_ps(mask, scales + n));
    __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums + n)), factor);
    if (bias != nullptr) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, bias + n));
    _mm512_mask_storeu_ps(to + n, mask, finished<post>(x));
  }
#else
  for (int64_t n = 0; n < columns; ++n)
    to[n] = finished<post>(sums[n] * (scale * scales[n]) + (bias == nullptr ? 0 : bias[n]));
#endif
}

using Write = decltype(&write_scaled<>);

Write writer(c10::string_view post) {
  TORCH_CHECK(post == "none" || post == "relu" || post == "gelu", "int8 linear of rows: it has no ", post);
  return post == "relu" ? &write_scaled<Post::relu> : post == "gelu" ? &write_scaled<Post::gelu> : &write_scaled<>;
}

// int8 [N, K] as bytes of packed columns, their starts behind them
Tensor packed(const Tensor& weight, int64_t zero) {
  const int64_t N = weight.size(0), K = weight.size(1);
  const Tensor own = weight.contiguous();
  std::vector<uint8_t> shifted(N * K);
  const auto* from = own.const_data_ptr<int8_t>();
  for (int64_t i = 0; i < N * K; ++i) shifted[i] = static_cast<uint8_t>(from[i] ^ 0x80);
  Packed columns;
  pack(columns, shifted.data(), K, N, 1, K, 0, zero);
  const int64_t size = columns.depth * columns.columns;
  Tensor out = at::empty({size + 4 * columns.columns}, weight.options().dtype(at::kChar));
  std::memcpy(out.data_ptr(), columns.values.data(), size);
  std::memcpy(out.data_ptr<int8_t>() + size, columns.starts.data(), 4 * columns.columns);
  return out;
}

PackedWeights& weights_of_rows() {
  static PackedWeights* const weights = new PackedWeights;  // never destroyed: tensors outlive static objects badly
  return *weights;
}

// What a linear multiplies with: weight [K, N], packed, and what is done to the sums of its columns
struct Right {
  int64_t K, N, depth, columns;
  const int8_t* values;
  const int32_t* starts;
  const float *scales, *bias;
  Write write;

  Columns part(int64_t column, int64_t width) const { return {depth, width, columns, values + column * 4, starts + column}; }
  const float* bias_of(int64_t column) const { return bias == nullptr ? nullptr : bias + column; }
};

// Scratch of one thread: rows in bytes, their steps, and sums of some of them
struct Scratch {
  std::vector<uint8_t> bytes;
  std::vector<float> steps;
  std::vector<int32_t> sums;
};

// Columns first … last of the results of some rows, x [rows, K] → to[row · N + column]: the rows as bytes, then a few
// columns by all of them, which stay in the cache, then the next.
void multiply_rows(const float* x, int64_t rows, const Levels& by, const Right& right, int64_t first, int64_t last, float* to,
                   Scratch& scratch) {
  const int64_t depth = right.depth, panel = WIDE * LANES, narrow = std::max(panel, RIGHT / depth / panel * panel);
  auto& [bytes, steps, sums] = scratch;
  bytes.resize(rows * depth);
  steps.resize(rows);
  sums.resize(BLOCK * narrow);
  round_rows(bytes.data(), steps.data(), x, rows, right.K, depth, right.K, 1, by);
  for (int64_t column = first; column < last; column += narrow) {
    const Columns part = right.part(column, std::min(narrow, round_up(last - column, LANES)));
    const int64_t width = std::min(part.columns, right.N - column);
    for (int64_t row = 0; row < rows; row += BLOCK) {
      const int64_t count = std::min(BLOCK, rows - row);
      multiply(bytes.data() + row * depth, depth, count, right.K, 0, part, sums.data(), narrow);
      for (int64_t i = 0; i < count; ++i)
        right.write(sums.data() + i * narrow, width, steps[row + i], right.scales + column, right.bias_of(column),
                    to + (row + i) * right.N + column);
    }
  }
}

// x float32 [..., K], rounded by rows to ±highest or 0 … highest, · weight int8 [N, K]ᵀ · scales [N] + bias [N], through
// `post`
Tensor linear_rows(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& bias, int64_t highest,
                   bool is_signed, c10::string_view post) {
  const int64_t K = weight.size(1), N = weight.size(0), depth = round_up(K, 4), columns = round_up(N, LANES);
  TORCH_CHECK(x.dim() > 0 && K > 0 && x.scalar_type() == at::kFloat && x.size(-1) == K && scales.numel() == N,
              "int8 linear of rows: shapes or types do not fit");
  const Levels by(highest, is_signed);
  const int64_t M = x.numel() / K;
  const Tensor from = x.contiguous();
  const Tensor stored = weights_of_rows().get(weight, 0, by.zero, [&] { return packed(weight, by.zero); }).first;
  const auto* values = stored.const_data_ptr<int8_t>();
  const Right right{K, N, depth, columns, values, reinterpret_cast<const int32_t*>(values + depth * columns),
                    scales.const_data_ptr<float>(), bias.has_value() ? bias->const_data_ptr<float>() : nullptr, writer(post)};
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = N;
  Tensor out = at::empty(sizes, x.options());
  const float* const rows = from.const_data_ptr<float>();
  float* const to = out.data_ptr<float>();
  // Rows are shared evenly; where there are fewer than threads need, columns as well.
  const int64_t threads = at::get_num_threads(), tall = std::clamp<int64_t>((M + BLOCK - 1) / BLOCK, 1, threads);
  const int64_t wide = std::clamp<int64_t>(threads / tall, 1, columns / LANES);
  const int64_t height = (M + tall - 1) / tall, width = round_up((columns + wide - 1) / wide, LANES);
  const int64_t together = std::max(BLOCK, LEFT / depth / BLOCK * BLOCK);
  at::parallel_for(0, M == 0 ? 0 : tall * wide, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t last = std::min(task / wide * height + height, M), left = task % wide * width;
      for (int64_t first = task / wide * height; first < last && left < N; first += together)
        multiply_rows(rows + first * K, std::min(together, last - first), by, right, left, std::min(left + width, N), to + first * N,
                      scratch);
    }
  });
  return out;
}

const float* floats(const Tensor& t, int64_t b, int64_t h) {
  return t.const_data_ptr<float>() + b * t.stride(0) + h * t.stride(1);
}

// softmax(score_scale · q·kᵀ + bias) · v: rows of q, k and the weights rounded on scales of their own, and columns of v.
// q [B, H, S, D], k [B, H, T, D], v [B, H, T, E], float32 → float32 [B, H, S, E] that lies in memory as [B, S, H, E];
// weights of 0 … weight_highest, the others of ±highest
Tensor attention_rows(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias, double score_scale,
                      int64_t q_highest, int64_t k_highest, int64_t weight_highest, int64_t v_highest) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(3) == k.size(3) && k.size(2) == v.size(2) &&
                  q.sizes().slice(0, 2) == k.sizes().slice(0, 2) && q.sizes().slice(0, 2) == v.sizes().slice(0, 2) &&
                  q.scalar_type() == at::kFloat && k.scalar_type() == at::kFloat && v.scalar_type() == at::kFloat,
              "int8 attention of rows: shapes or types do not fit");
  TORCH_CHECK(q.size(3) <= DEEPEST && k.size(2) <= DEEPEST, "int8 attention of rows: sums of so many products leave int32");
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), D = q.size(3), T = k.size(2), E = v.size(3);
  const Levels by_q(q_highest, true), by_k(k_highest, true), by_v(v_highest, true);
  Tensor out = at::empty_strided({B, H, S, E}, {S * H * E, E, H * E, 1}, q.options());
  const AddedScores added(bias, B, H, S, T);
  const int64_t cut = parts(B * H, S), height = round_up((S + cut - 1) / cut, ROWS), depth = round_up(D, 4);
  at::parallel_for(0, B * H * cut, 1, [&](int64_t begin, int64_t end) {
    Packed keys, values;
    Between between;
    std::vector<uint8_t> bytes, queries;
    std::vector<float> shifts, k_steps, v_steps;
    queries.resize(BLOCK * depth);
    float q_steps[BLOCK], w_steps[BLOCK], spoiled = 0;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / cut / H, h = task / cut % H, first = task % cut * height;
      if (task == begin || task % cut == 0) {
        k_steps.assign(round_up(T, LANES), 0);
        v_steps.resize(E);
        bytes.resize(T * std::max(depth, E));
        round_rows(bytes.data(), k_steps.data(), floats(k, b, h), T, D, depth, k.stride(2), k.stride(3), by_k);
        pack(keys, bytes.data(), D, T, 1, depth, 0, by_q.zero);
        if (v.stride(3) == 1) {
          round_columns(bytes.data(), v_steps.data(), floats(v, b, h), T, E, v.stride(2), by_v);
          pack(values, bytes.data(), T, E, E, 1, 0, 0);
        } else {
          round_rows(bytes.data(), v_steps.data(), floats(v, b, h), E, T, T, v.stride(3), v.stride(2), by_v);
          pack(values, bytes.data(), T, E, 1, T, 0, 0);
        }
        spoiled = 0;
        for (int64_t n = 0; n < T; ++n) spoiled = std::isnan(k_steps[n]) ? k_steps[n] : spoiled;
        added.begin(shifts, keys.columns, b, h);
        between.reserve(keys, values);
      }
      for (int64_t row = first; row < std::min(first + height, S); row += BLOCK) {
        const int64_t count = std::min({BLOCK, S - row, first + height - row});
        round_rows(queries.data(), q_steps, floats(q, b, h) + row * q.stride(2), count, D, depth, q.stride(2), q.stride(3), by_q);
        multiply(queries.data(), depth, count, D, 0, keys.view(), between.scores.data(), keys.columns);
        const int64_t together = std::max<int64_t>(1, IN_CACHE / keys.columns);
        for (int64_t i = 0; i < count; i += together) {
          const Softmax by{static_cast<float>(score_scale) * LOG2_E, 0, static_cast<float>(weight_highest), q_steps + i,
                           k_steps.data(), w_steps + i};
          softmax(between.scores.data() + i * keys.columns, std::min(together, count - i), shifts.data(), T, keys.columns,
                  added.row(b, h, row + i), added.stride(), by, between.weights.data() + i * keys.columns);
        }
        multiply(between.weights.data(), keys.columns, count, T, 0, values.view(), between.sums.data(), values.columns);
        for (int64_t i = 0; i < count; ++i)  // a query or key without numbers makes scores of none
          write_scaled(between.sums.data() + i * values.columns, E, w_steps[i] + 0 * q_steps[i] + spoiled, v_steps.data(), nullptr,
                       static_cast<float*>(at_row(out, b, h, row + i)));
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(octavo, m) {
  m.def("int8_linear_rows(Tensor x, Tensor weight, Tensor scales, Tensor? bias, int highest, bool is_signed, "
        "str post='none') -> Tensor");
  m.def(
      "int8_attention_rows(Tensor q, Tensor k, Tensor v, Tensor? bias, float score_scale, int q_highest, int k_highest, "
      "int weight_highest, int v_highest) -> Tensor");
}

TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("int8_linear_rows", linear_rows);
  m.impl("int8_attention_rows", attention_rows);
}
