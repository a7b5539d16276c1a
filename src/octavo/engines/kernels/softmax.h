// The softmax between the two products of an attention: sums in int32 become weights in uint8.

#pragma once

#include <optional>

#include "product.h"

namespace {

constexpr float LOG2_E = 1.44269504f;
constexpr float LEAST = -100;  // of the exponents in a softmax: 2 to this is no weight, and one over it no infinity

// 2ᵗ for t ≤ 0, relative error 3e-6: 2ᶠ by a minimax polynomial, f = t − ⌊t⌋, times 2 to the ⌊t⌋. NaN, which is what
// remains of −∞ − −∞ where everything is masked, counts as LEAST.
F32 power_of_two(F32 t) {
  t = max(t, every(LEAST));
  const F32 whole = floor(t), f = subtract(t, whole);
  F32 e = every(1.353416724e-2f);
  for (const float c : {5.201146191e-2f, 2.414427561e-1f, 6.930038346e-1f, 1.000002593f}) e = fused(e, f, every(c));
  return times_power_of_two(e, whole);
}

// How the scores of one query become weights: 2 to the (sum · scale + shift + bias · log₂ e), over the total of these, on
// integers of 1 / inverse_step. By rows, the sums have scales of their own, scale · of_row · of_column, and the integers
// a step for each row: one over the total, in `highest` parts.
struct Softmax {
  float scale, inverse_step, highest;
  const float* of_row = nullptr;     // [rows]
  const float* of_column = nullptr;  // [columns], padded
  float* steps = nullptr;            // [rows], written
};

// What weights of this row are multiplied by, to be integers; their step is noted. The largest is 1, before.
float factor_of(const Softmax& by, int64_t row, float total) {
  if (by.steps == nullptr) return by.inverse_step / total;
  by.steps[row] = 1 / (total * by.highest);
  return by.highest;
}

// The scores of some queries: sums int32 [rows, padded], of which `columns` count, → weights [rows, depth], zeros behind
// `columns`. bias float32 [rows, columns], its rows bias_stride apart, may be null. Each pass goes over all rows before
// the next one: else it would wait for the maximum and for the total of every row.
void softmax(int32_t* sums, int64_t rows, const float* shifts, int64_t columns, int64_t padded, const float* bias,
             int64_t bias_stride, const Softmax& by, Left* weights, int64_t depth) {
  auto* scores = reinterpret_cast<float*>(sums);
  float of_row[BLOCK];  // the maximum, then the factor
  const auto each_part = [&](const auto& step) INLINE {
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) step(i, lanes(LANES));
    if (i < columns) step(i, lanes(columns - i));
  };
  const F32 log2_e = every(LOG2_E), limit = every(by.highest), none = every(0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    const F32 scale = every(by.of_row == nullptr ? by.scale : by.scale * by.of_row[row]);
    F32 most = every(-std::numeric_limits<float>::infinity());
    each_part([&](int64_t i, Lanes some) INLINE {
      F32 score = to_floats(load(sums + row * padded + i));
      if (by.of_column != nullptr) score = multiply(score, load(by.of_column + i));
      score = fused(score, scale, load(shifts + i));
      if (bias != nullptr) score = fused(load(bias + row * bias_stride + i, some), log2_e, score);
      most = keep(max(most, score), some, most);
      store(scores + row * padded + i, score);
    });
    of_row[row] = highest(most);
  }
  for (int64_t row = 0; row < rows; ++row) {
    F32 all = none;
    const F32 top = every(of_row[row]);
    each_part([&](int64_t i, Lanes some) INLINE {
      float* const at = scores + row * padded + i;
      const F32 e = keep(power_of_two(subtract(load(at), top)), some, none);
      all = add(all, e);
      store(at, e);
    });
    of_row[row] = factor_of(by, row, total(all));
  }
  for (int64_t row = 0; row < rows; ++row) {
    const F32 factor = every(of_row[row]);
    int64_t i = 0;
    for (; i < columns; i += LANES)
      store(weights + row * depth + i, to_integers(min(multiply(load(scores + row * padded + i), factor), limit)));
    std::fill(weights + row * depth + std::min(i, depth), weights + (row + 1) * depth, 0);
  }
}

// Between the two products of an attention: scores, weights and the sums of the second product, for BLOCK queries.
struct Between {
  std::vector<int32_t> scores, sums;
  std::vector<Left> weights;
  int64_t depth;  // of a row of weights

  void reserve(const Packed& keys, const Packed& values) {
    depth = std::max(keys.columns, values.depth);
    scores.resize(BLOCK * keys.columns);
    weights.resize(BLOCK * depth);
    sums.resize(BLOCK * values.columns);
  }
};

// What is added to the scores before the softmax: a bias [B, H, S, T], or with sizes of 1 where it is the same for all.
class AddedScores {
 public:
  AddedScores(const std::optional<Tensor>& bias, int64_t B, int64_t H, int64_t S, int64_t T) : keys_(T) {
    if (!bias.has_value()) return;
    TORCH_CHECK(bias->dim() == 4 && bias->scalar_type() == at::kFloat, "int8 attention: bias must be float32 [B, H, S, T]");
    const int64_t whole[4] = {B, H, S, T};
    for (int i = 0; i < 4; ++i)
      TORCH_CHECK(bias->size(i) == 1 || bias->size(i) == whole[i], "int8 attention: bias does not fit the scores");
    all_ = bias->expand({bias->size(0), bias->size(1), bias->size(2), T}).contiguous();
    for (int i = 0; i < 3; ++i) strides_[i] = all_.size(i) == 1 ? 0 : all_.stride(i);
  }

  // shifts [padded] of the exponents, where the bias is the same for all queries; else zeros
  void begin(std::vector<float>& shifts, int64_t padded, int64_t b, int64_t h) const {
    shifts.assign(padded, 0);
    if (all_.defined() && strides_[2] == 0)
      for (int64_t n = 0; n < keys_; ++n) shifts[n] = from(b, h)[n] * LOG2_E;
  }

  // the bias of one query, if it is not the same for all
  const float* row(int64_t b, int64_t h, int64_t row) const {
    return all_.defined() && strides_[2] != 0 ? from(b, h) + row * strides_[2] : nullptr;
  }

  int64_t stride() const { return strides_[2]; }

 private:
  const float* from(int64_t b, int64_t h) const { return all_.const_data_ptr<float>() + b * strides_[0] + h * strides_[1]; }

  int64_t keys_;
  Tensor all_;  // its keys side by side
  int64_t strides_[3] = {0, 0, 0};
};

}  // namespace
