// Linears on our own kernel: rows of x times a packed weight.
//
//     rows of float32, rounded on scales of their own, or of uint8 ─▶ integers in the cache
//         ─▶ sums of a few columns ─▶ scaled, bias, activation ─▶ float32, or uint8

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "ending.h"
#include "packed_weights.h"
#include "rounding.h"

namespace {

constexpr int64_t LEFT = 1 << 18, RIGHT = 1 << 17;  // bytes of a linear's operands that stay in the second cache together

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

PackedWeights& packed_columns() {
  static PackedWeights* const weights = new PackedWeights;  // never destroyed: tensors outlive static objects badly
  return *weights;
}

// What a linear multiplies with: weight [N, K], packed, and how the sums end
struct Weights {
  int64_t K, N;
  Columns columns;
  Ending ending;
  Write write;
};

Weights weights_of(const Tensor& weight, int64_t x_zero, const Ending& ending, Write write) {
  const int64_t N = weight.size(0), K = weight.size(1), depth = padded(K), columns = round_up(N, LANES);
  const auto* values =
      packed_columns().get(weight, 0, x_zero, [&] { return packed(weight, x_zero); }).first.const_data_ptr<int8_t>();
  const auto* starts = reinterpret_cast<const int32_t*>(values + depth * columns);
  return {K, N, Columns{depth, columns, values, starts}, ending, write};
}

// Scratch of one thread: rows in integers, what those are multiplied by, and sums of some of them
struct Scratch {
  std::vector<Left> integers;
  std::vector<float> steps;
  std::vector<int32_t> sums;
};

// Columns first … last of the results of some rows, which `prepare` writes as integers and steps: a few columns by all of
// the rows, which stay in the cache, then the next.
template <typename Prepare>
void multiply_rows(const Prepare& prepare, int64_t row, int64_t rows, const Weights& by, int64_t first, int64_t last, void* to,
                   Scratch& scratch) {
  const int64_t depth = by.columns.depth, narrow = std::max(PANEL, RIGHT / depth / PANEL * PANEL);
  auto& [integers, steps, sums] = scratch;
  integers.resize(rows * depth);
  steps.resize(rows);
  sums.resize(BLOCK * narrow);
  prepare(row, rows, integers.data(), steps.data());
  for (int64_t column = first; column < last; column += narrow) {
    const Columns part = by.columns.part(column, std::min(narrow, round_up(last - column, LANES)));
    const int64_t width = std::min(part.columns, by.N - column);
    const Ending ending = by.ending.of(column);
    for (int64_t i = 0; i < rows; i += BLOCK) {
      const int64_t count = std::min(BLOCK, rows - i);
      multiply(integers.data() + i * depth, depth, count, by.K, 0, part, sums.data(), narrow);
      for (int64_t j = 0; j < count; ++j)
        by.write(sums.data() + j * narrow, width, steps[i + j], ending, to, (row + i + j) * by.N + column);
    }
  }
}

// All M rows. They are shared evenly; where there are fewer than threads need, columns as well.
template <typename Prepare>
void multiply_all(const Prepare& prepare, int64_t M, const Weights& by, void* to) {
  const int64_t threads = at::get_num_threads(), tall = std::clamp<int64_t>((M + BLOCK - 1) / BLOCK, 1, threads);
  const int64_t wide = std::clamp<int64_t>(threads / tall, 1, by.columns.columns / LANES);
  const int64_t height = (M + tall - 1) / tall, width = round_up((by.columns.columns + wide - 1) / wide, PANEL);
  const int64_t together = std::max(BLOCK, LEFT / by.columns.depth / BLOCK * BLOCK);
  at::parallel_for(0, M == 0 ? 0 : tall * wide, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t last = std::min(task / wide * height + height, M), left = task % wide * width;
      for (int64_t first = task / wide * height; first < last && left < by.N; first += together)
        multiply_rows(prepare, first, std::min(together, last - first), by, left, std::min(left + width, by.N), to, scratch);
    }
  });
}

std::vector<int64_t> sizes_of(const Tensor& x, int64_t N) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = N;
  return sizes;
}

void check(const Tensor& x, at::ScalarType type, const Tensor& weight, const Tensor& scales) {
  TORCH_CHECK(x.dim() > 0 && weight.size(1) > 0 && x.scalar_type() == type && x.size(-1) == weight.size(1) &&
                  scales.numel() == weight.size(0),
              "int8 linear: shapes or types do not fit");
}

constexpr float UNBOUNDED = std::numeric_limits<float>::infinity();

// x float32 [..., K], rounded by rows to ±highest or 0 … highest, · weight int8 [N, K]ᵀ · scales [N] + bias [N], through
// `post` → float32. Nothing is known of the range of x before. A row that holds NaN or infinity returns NaN, as in float,
// and spoils no other.
Tensor linear_rows(const Tensor& x, const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& bias, int64_t highest,
                   bool is_signed, c10::string_view post) {
  check(x, at::kFloat, weight, scales);
  TORCH_CHECK(post == "none" || post == "relu" || post == "gelu", "int8 linear of rows: it has no ", post);
  const Levels levels(highest, is_signed);
  const Ending ending{scales.const_data_ptr<float>(), bias.has_value() ? bias->const_data_ptr<float>() : nullptr, -UNBOUNDED, UNBOUNDED};
  const Weights by = weights_of(weight, levels.zero, ending, writer(post, "none"));
  const Tensor from = x.contiguous();
  const auto* const values = from.const_data_ptr<float>();
  const auto prepare = [&](int64_t row, int64_t rows, Left* to, float* steps) {
    round_rows(to, steps, values + row * by.K, rows, by.K, by.columns.depth, by.K, 1, levels);
  };
  Tensor out = at::empty(sizes_of(x, by.N), x.options());
  multiply_all(prepare, x.numel() / by.K, by, out.data_ptr());
  return out;
}

// x uint8 [..., K], real = x_scale · (x − x_zero), · weight int8 [N, K]ᵀ · scales [N] + bias [N], through `post` → float32,
// or uint8 of out_scale and out_zero
Tensor linear_of_bytes(const Tensor& x, double x_scale, int64_t x_zero, const Tensor& weight, const Tensor& scales,
                       const std::optional<Tensor>& bias, double out_scale, int64_t out_zero, bool to_uint8, c10::string_view post,
                       at::ArrayRef<double> post_arguments, c10::string_view algorithm) {
  check(x, at::kByte, weight, scales);
  const bool bounded = post == "hardtanh";
  Ending ending{scales.const_data_ptr<float>(), bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                bounded ? static_cast<float>(post_arguments[0]) : -UNBOUNDED, bounded ? static_cast<float>(post_arguments[1]) : UNBOUNDED};
  if (to_uint8) {
    ending.inverse_step = static_cast<float>(1 / out_scale);
    ending.zero = static_cast<float>(out_zero);
  }
  const Weights by = weights_of(weight, x_zero, ending, writer(post, algorithm));
  const Tensor from = x.contiguous();
  const auto* const values = from.const_data_ptr<uint8_t>();
  const auto prepare = [&](int64_t row, int64_t rows, Left* to, float* steps) {
    const int64_t depth = by.columns.depth;
    std::fill_n(steps, rows, static_cast<float>(x_scale));
    for (int64_t i = 0; i < rows; ++i, to += depth) {
      std::copy_n(values + (row + i) * by.K, by.K, to);
      std::fill(to + by.K, to + depth, 0);
    }
  };
  Tensor out = at::empty(sizes_of(x, by.N), x.options().dtype(to_uint8 ? at::kByte : at::kFloat));
  multiply_all(prepare, x.numel() / by.K, by, out.data_ptr());
  return out;
}

}  // namespace

OCTAVO_FRAGMENT(OCTAVO_OPERATORS, m) {
  m.def("int8_linear_rows(Tensor x, Tensor weight, Tensor scales, Tensor? bias, int highest, bool is_signed, "
        "str post='none') -> Tensor");
  m.def(
      "int8_linear_of_bytes(Tensor x, float x_scale, int x_zero, Tensor weight, Tensor scales, Tensor? bias, "
      "float out_scale, int out_zero, bool to_uint8, str post, float[] post_arguments, str algorithm) -> Tensor");
}

OCTAVO_IMPLEMENTATION(OCTAVO_OPERATORS, CPU, m) {
  m.impl("int8_linear_rows", linear_rows);
  m.impl("int8_linear_of_bytes", linear_of_bytes);
}
