// Attention whose operands are rounded on scales of their own, taken from their largest values: rows of queries, of keys and
// of weights, columns of values. Nothing is known of their range before. What holds NaN or infinity returns NaN, as in
// float, and spoils no other.

#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <optional>

#include "ending.h"
#include "rounding.h"

namespace {

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
  const int64_t cut = parts(B * H, S), height = round_up((S + cut - 1) / cut, ROWS), depth = padded(D);
  at::parallel_for(0, B * H * cut, 1, [&](int64_t begin, int64_t end) {
    Packed keys, values;
    Between between;
    std::vector<uint8_t> bytes;
    std::vector<Left> queries;
    std::vector<float> shifts, k_steps, v_steps;
    queries.resize(BLOCK * depth);
    float q_steps[BLOCK], w_steps[BLOCK], spoiled = 0;
    Ending ending{nullptr, nullptr, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
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
        ending.scales = v_steps.data();
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
                  added.row(b, h, row + i), added.stride(), by, between.weights.data() + i * between.depth, between.depth);
        }
        multiply(between.weights.data(), between.depth, count, T, 0, values.view(), between.sums.data(), values.columns);
        for (int64_t i = 0; i < count; ++i)  // a query or key without numbers makes scores of none
          write_scaled<unchanged>(between.sums.data() + i * values.columns, E, w_steps[i] + 0 * q_steps[i] + spoiled, ending,
                                  at_row(out, b, h, row + i), 0);
      }
    }
  });
  return out;
}

}  // namespace

OCTAVO_FRAGMENT(OCTAVO_OPERATORS, m) {
  m.def(
      "int8_attention_rows(Tensor q, Tensor k, Tensor v, Tensor? bias, float score_scale, int q_highest, int k_highest, "
      "int weight_highest, int v_highest) -> Tensor");
}

OCTAVO_IMPLEMENTATION(OCTAVO_OPERATORS, CPU, m) { m.impl("int8_attention_rows", attention_rows); }
