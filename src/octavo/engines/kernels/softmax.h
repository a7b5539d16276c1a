// The softmax between the two products of an attention: sums in int32 become weights in uint8.

#pragma once

#include <optional>

#include "product.h"

namespace {

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
  const __m512 log2_e = _mm512_set1_ps(LOG2_E), limit = _mm512_set1_ps(by.highest);
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 scale = _mm512_set1_ps(by.of_row == nullptr ? by.scale : by.scale * by.of_row[row]);
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    each([&](int64_t i, __mmask16 mask) {
      __m512 score = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, sums + row * padded + i));
      if (by.of_column != nullptr) score = _mm512_mul_ps(score, _mm512_loadu_ps(by.of_column + i));
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
    of_row[row] = factor_of(by, row, _mm512_reduce_add_ps(all));
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
      const float step = by.of_row == nullptr ? 1.0f : by.of_row[row] * by.of_column[i];
      at[i] = static_cast<float>(sums[row * padded + i]) * by.scale * step + shifts[i] + added;
      highest = std::max(highest, at[i]);
    }
    for (int64_t i = 0; i < columns; ++i) {
      const float t = at[i] - highest;
      total += at[i] = std::exp2(t > LEAST ? t : LEAST);
    }
    const float factor = factor_of(by, row, total);
    for (int64_t i = 0; i < padded; ++i)
      weights[row * padded + i] = i < columns ? static_cast<uint8_t>(std::nearbyint(std::min(at[i] * factor, by.highest))) : 0;
  }
#endif
}

// Between the two products of an attention: scores, weights and the sums of the second product, for BLOCK queries.
struct Between {
  std::vector<int32_t> scores, sums;
  std::vector<uint8_t> weights;

  void reserve(const Packed& keys, const Packed& values) {
    scores.resize(BLOCK * keys.columns);
    weights.resize(BLOCK * keys.columns);
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
