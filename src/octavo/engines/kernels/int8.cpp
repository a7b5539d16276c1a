// Octavo's integer kernels for the CPU, as operators that Inductor calls.
//
//     int8_linear, int8_convolution             oneDNN's, where it is exact: by way of torch's operators, weights packed once
//     int8_matmul, int8_attention               our own: torch has none for two activations
//     int8_convolutions                         our own, in convolution.cpp
//     int8_linear_of_bytes, int8_linear_rows    our own, in linear.cpp
//     int8_attention_rows                       our own, in rows.cpp
//
// What operands are, and how sums of them are exact, says product.h; simd.h what all of it is written in.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "packed_weights.h"
#include "softmax.h"

namespace {

using at::Tensor;

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
        const Left* from = rows.of(bytes(left, b, h) + row * left.stride(2), count, K, left.stride(2), left.stride(3), stride);
        multiply(from, stride, count, K, c, packed.view(), sums.data(), packed.columns);
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
  const AddedScores added(bias, B, H, S, T);
  const int64_t cut = parts(B * H, S), height = round_up((S + cut - 1) / cut, ROWS);
  at::parallel_for(0, B * H * cut, 1, [&](int64_t begin, int64_t end) {
    Packed keys, values;
    Rows rows;
    std::vector<float> shifts;  // [T] of the bias, where it is the same for all queries
    Between between;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / cut / H, h = task / cut % H, first = task % cut * height;
      if (task == begin || task % cut == 0) {
        pack(keys, bytes(k, b, h), D, T, k.stride(3), k.stride(2), c_k, z_q);
        pack(values, bytes(v, b, h), T, E, v.stride(2), v.stride(3), c_v, 0);
        added.begin(shifts, keys.columns, b, h);
        between.reserve(keys, values);
      }
      for (int64_t row = first; row < std::min(first + height, S); row += BLOCK) {
        const int64_t count = std::min({BLOCK, S - row, first + height - row});
        int64_t stride;
        const Left* from = rows.of(bytes(q, b, h) + row * q.stride(2), count, D, q.stride(2), q.stride(3), stride);
        multiply(from, stride, count, D, c_k, keys.view(), between.scores.data(), keys.columns);
        const int64_t together = std::max<int64_t>(1, IN_CACHE / keys.columns);
        for (int64_t i = 0; i < count; i += together) {
          softmax(between.scores.data() + i * keys.columns, std::min(together, count - i), shifts.data(), T, keys.columns,
                  added.row(b, h, row + i), added.stride(), by, between.weights.data() + i * between.depth, between.depth);
        }
        multiply(between.weights.data(), between.depth, count, T, c_v, values.view(), between.sums.data(), values.columns);
        for (int64_t i = 0; i < count; ++i) write_row(between.sums.data() + i * values.columns, E, as, at_row(out, b, h, row + i));
      }
    }
  });
  return out;
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

OCTAVO_LIBRARY(OCTAVO_OPERATORS, m) {
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

OCTAVO_IMPLEMENTATION(OCTAVO_OPERATORS, CPU, m) {
  m.impl("int8_linear", linear);
  m.impl("int8_convolution", convolution);
  m.impl("int8_matmul", matmul);
  m.impl("int8_attention", attention);
}
