// A chain of up to three convolutions of uint8 images, a strip of rows at a time: what one stage writes, the next reads
// from the cache. An inverted residual (dense 1×1 ▸ depthwise k×k ▸ dense 1×1 + skip) is one such chain.
//
//     x [N, H, W, C] ─▶ stage ─▶ lines in the cache ─▶ stage ─▶ lines in the cache ─▶ stage ─▶ [N, H', W', C']
//
// Sums are int32 and exact, Σ (u − z)·w over unsigned u and signed w: each begins with its channel's start, −z Σ w, and
// Σ u·w is added. It is then multiplied by its channel's scale, its channel's offset is added (bias, and the zero-point of
// the result), and rounded once, ties to even; whoever calls sees to it that all this stays within int32. Weights, starts,
// scales and offsets come in the order in which they are read: `lowering/packing.py` describes and makes it.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "vnni.h"

namespace {

using at::Tensor;

#ifdef OCTAVO_VNNI

constexpr int64_t BLOCK = 64;            // channels whose results make one vector of bytes
constexpr int64_t IN_CACHE = 384 << 10;  // bytes that the stages read in one strip; the second nearest cache has 1 MiB or more
constexpr int64_t SLACK = 64;            // bytes that may be read behind the lines

struct Stage {
  bool depthwise;
  int64_t inputs, outputs;  // channels
  int64_t kernel_h, kernel_w, stride_h, stride_w;
  int64_t padding_h, padding_w, behind_h, behind_w;  // before the first row and column, and behind the last
  int64_t zero;       // of what it reads: the value of padding
  int64_t low, high;  // of the bytes that it writes
  bool to_float;      // writes float32 instead
  const int8_t* weights;
  const int32_t* starts;
  const float* scales;
  const float* offsets;
  int64_t height_in, width_in, height, width;  // of its images

  bool padded() const { return padding_h + padding_w + behind_h + behind_w > 0; }
  bool pointwise() const { return !depthwise && !padded() && kernel_h * kernel_w * stride_h * stride_w == 1; }
};

// Rows of one image: row r begins at base + r · pitch.
struct Rows {
  const uint8_t* base;
  int64_t pitch;
  const uint8_t* row(int64_t r) const { return base + r * pitch; }
};

// What is added to the sums of the last stage: real = scale · (u − zero), the zero being in the offsets.
struct Skip {
  const uint8_t* values;  // null for none
  float scale;
};

// ---- from sums to bytes

// 64 channels in the order of `packing.ORDER`, in which packing them twice leaves them in their own.
__m512i packed(const __m512 x[4], __m512i low, __m512i high) {
  __m512i q[4];
  UNROLLED for (int v = 0; v < 4; ++v) q[v] = _mm512_cvtps_epi32(x[v]);
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  return _mm512_max_epu8(_mm512_min_epu8(bytes, high), low);
}

// The reverse of `packed`: 64 bytes in four vectors of int32.
void unpacked(__m512i bytes, __m512i to[4]) {
  const __m512i nought = _mm512_setzero_si512();
  const __m512i ab = _mm512_unpacklo_epi8(bytes, nought), cd = _mm512_unpackhi_epi8(bytes, nought);
  to[0] = _mm512_unpacklo_epi16(ab, nought);
  to[1] = _mm512_unpackhi_epi16(ab, nought);
  to[2] = _mm512_unpacklo_epi16(cd, nought);
  to[3] = _mm512_unpackhi_epi16(cd, nought);
}

// sum += Σ of four products in each lane. Written out: GCC 12 else keeps the sums of a tile in memory.
void dot(__m512i& sum, __m512i u, __m512i w) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(w)); }

// ---- dense

// `rows` pixels by `wide` vectors of output channels. left[i] is where the window of pixel i begins; each of its
// kernel_h lines is `run` bytes long, `pitch` apart.
template <int rows, int wide>
void tile(const Stage& stage, const uint8_t* const* left, int64_t pitch, int64_t run, const int8_t* weights,
          int64_t channel, void* to, int64_t pixel, const Skip& skip) {
  __m512i sum[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const __m512i start = _mm512_loadu_si512(stage.starts + channel + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) sum[i][j] = start;
  }
  for (int64_t line = 0; line < stage.kernel_h; ++line) {
    const uint8_t* from[rows];
    UNROLLED for (int i = 0; i < rows; ++i) from[i] = left[i] + line * pitch;
    for (int64_t k = 0; k < run; k += 4, weights += wide * LANES * 4) {
      __m512i vector[wide];
      UNROLLED for (int j = 0; j < wide; ++j) vector[j] = _mm512_loadu_si512(weights + j * LANES * 4);
      UNROLLED for (int i = 0; i < rows; ++i) {
        int32_t four;
        std::memcpy(&four, from[i] + k, 4);
        const __m512i all = _mm512_set1_epi32(four);
        UNROLLED for (int j = 0; j < wide; ++j) dot(sum[i][j], all, vector[j]);
      }
    }
  }
  __m512 real[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const __m512 scale = _mm512_loadu_ps(stage.scales + channel + j * LANES);
    const __m512 offset = _mm512_loadu_ps(stage.offsets + channel + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) real[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), scale, offset);
  }
  const __m512 added = _mm512_set1_ps(skip.scale);
  const __m512i low = _mm512_set1_epi8(static_cast<char>(stage.low)), high = _mm512_set1_epi8(static_cast<char>(stage.high));
  UNROLLED for (int i = 0; i < rows; ++i) {
    const int64_t at = (pixel + i) * stage.outputs + channel;
    if constexpr (wide == 4) {
      if (!stage.to_float && channel + BLOCK <= stage.outputs) {
        if (skip.values != nullptr) {
          __m512i other[4];
          unpacked(_mm512_loadu_si512(skip.values + at), other);
          UNROLLED for (int j = 0; j < 4; ++j) real[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other[j]), added, real[i][j]);
        }
        _mm512_storeu_si512(static_cast<uint8_t*>(to) + at, packed(real[i], low, high));
        continue;
      }
    }
    UNROLLED for (int j = 0; j < wide; ++j) {
      const __mmask16 mask = lanes(stage.outputs, channel + j * LANES);
      __m512 x = real[i][j];
      if (skip.values != nullptr) {
        const __m128i other = _mm_maskz_loadu_epi8(mask, skip.values + at + j * LANES);
        x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(other)), added, x);
      }
      if (stage.to_float) {
        _mm512_mask_storeu_ps(static_cast<float*>(to) + at + j * LANES, mask, x);
      } else {
        const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(static_cast<int>(stage.low)));
        const __m128i bytes = _mm_min_epu8(_mm512_cvtusepi32_epi8(q), _mm512_castsi512_si128(high));
        auto* const out = reinterpret_cast<__m128i*>(static_cast<uint8_t*>(to) + at + j * LANES);
        mask == 0xffff ? _mm_storeu_si128(out, bytes) : _mm_mask_storeu_epi8(out, mask, bytes);
      }
    }
  }
}

// `wide` vectors of output channels of all pixels. The last tile lies over the one before it where they do not go up.
template <int rows, int wide>
void columns(const Stage& stage, const std::vector<const uint8_t*>& left, int64_t pitch, int64_t run,
             const int8_t* weights, int64_t channel, void* to, const Skip& skip) {
  const auto pixels = static_cast<int64_t>(left.size());
  if (pixels < rows) {
    for (int64_t i = 0; i < pixels; ++i)
      tile<1, wide>(stage, left.data() + i, pitch, run, weights, channel, to, i, skip);
    return;
  }
  for (int64_t i = 0; i < pixels; i += rows) {
    const int64_t first = std::min(i, pixels - rows);
    tile<rows, wide>(stage, left.data() + first, pitch, run, weights, channel, to, first, skip);
  }
}

// Sums in registers: rows × wide of them, `wide` vectors of weights and one of pixels, of 32.
constexpr decltype(&columns<1, 1>) COLUMNS[] = {nullptr, columns<12, 1>, columns<12, 2>, columns<8, 3>, columns<6, 4>};

// The pixels of output rows [a, b), written from `to` on.
void dense(const Stage& stage, const Rows& in, int64_t a, int64_t b, void* to, const Skip& skip) {
  static thread_local std::vector<const uint8_t*> left;
  static thread_local std::vector<uint8_t> copy;
  const int64_t C = stage.inputs, run = round_up(stage.kernel_w * C, 4);
  Rows from = in;
  int64_t begin = a * stage.stride_h;  // of the first window, as a row of `from`
  if (stage.kernel_h * stage.kernel_w > 1 || stage.padded() || C % 4 != 0) {
    const int64_t first = begin - stage.padding_h, count = (b - 1 - a) * stage.stride_h + stage.kernel_h;
    const int64_t edge = stage.padding_w * C, middle = stage.width_in * C, behind = stage.behind_w * C;
    from.pitch = edge + middle + behind;
    copy.resize(count * from.pitch + SLACK);
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* const line = copy.data() + r * from.pitch;
      const bool inside = first + r >= 0 && first + r < stage.height_in;
      std::memset(line, static_cast<int>(stage.zero), inside ? edge : from.pitch);
      if (inside) {
        std::memcpy(line + edge, in.row(first + r), middle);
        std::memset(line + edge + middle, static_cast<int>(stage.zero), behind);
      }
    }
    from.base = copy.data();
    begin = 0;
  }
  left.resize((b - a) * stage.width);
  const uint8_t** next = left.data();
  for (int64_t y = 0; y < b - a; ++y)
    for (int64_t x = 0; x < stage.width; ++x) *next++ = from.row(begin + y * stage.stride_h) + x * stage.stride_w * C;
  const int8_t* weights = stage.weights;
  for (int64_t channel = 0; channel < stage.outputs; channel += BLOCK) {
    const int64_t wide = std::min<int64_t>(4, (stage.outputs - channel + LANES - 1) / LANES);
    COLUMNS[wide](stage, left, from.pitch, run, weights, channel, to, skip);
    weights += stage.kernel_h * run * wide * LANES;
  }
}

// ---- depthwise

#define INLINE __attribute__((always_inline))

// The same 64 channels of four pixels, side by side: vectors in the order of `packed`.
INLINE inline void interleave(const __m512i p[4], __m512i to[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(p[0], p[1]), high01 = _mm512_unpackhi_epi8(p[0], p[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(p[2], p[3]), high23 = _mm512_unpackhi_epi8(p[2], p[3]);
  to[0] = _mm512_unpacklo_epi16(low01, low23);
  to[1] = _mm512_unpackhi_epi16(low01, low23);
  to[2] = _mm512_unpacklo_epi16(high01, high23);
  to[3] = _mm512_unpackhi_epi16(high01, high23);
}

// One output row of 64 channels, or of fewer if not `whole`. rows[r]: line r of the windows, at the first of these
// channels. Square windows of width `window` slide: their first four lines stay in registers, column by column, and each
// pixel loads `stride` new ones. The other taps, of other windows all, are taken four at a time.
template <int window, int stride, bool whole>
void depthwise_row(const Stage& stage, const uint8_t* const* rows, const int8_t* weights, const int32_t* starts,
                   const float* scales, const float* offsets, __mmask64 mask, uint8_t* to) {
  constexpr int tall = std::min(window, 4), kept = std::max(window - stride, 0);
  const int64_t C = stage.inputs, taps = window > 0 ? window * window : stage.kernel_h * stage.kernel_w;
  const __m512i padding = _mm512_set1_epi8(static_cast<char>(stage.zero));
  const __m512i low = _mm512_set1_epi8(static_cast<char>(stage.low)), high = _mm512_set1_epi8(static_cast<char>(stage.high));
  const auto inside = [&](int64_t x) { return static_cast<uint64_t>(x) < static_cast<uint64_t>(stage.width_in); };
  const auto read = [&](const uint8_t* from) INLINE {
    return whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(mask, from);
  };
  __m512i column[std::max(window, 1)][4];
  const auto load = [&](int64_t x, __m512i into[4]) INLINE {
    if (inside(x)) {
      __m512i p[4];
      UNROLLED for (int i = 0; i < 4; ++i) p[i] = i < tall ? read(rows[i] + x * C) : _mm512_setzero_si512();
      interleave(p, into);
    } else {
      UNROLLED for (int v = 0; v < 4; ++v) into[v] = padding;
    }
  };
  UNROLLED for (int i = 0; i < kept; ++i) load(i - stage.padding_w, column[i + window - kept]);
  for (int64_t x = 0; x < stage.width; ++x) {
    const int64_t first = x * stage.stride_w - stage.padding_w;
    const int8_t* w = weights;
    __m512i sum[4];
    UNROLLED for (int v = 0; v < 4; ++v) sum[v] = _mm512_loadu_si512(starts + v * LANES);
    UNROLLED for (int i = 0; i < kept; ++i)
      UNROLLED for (int v = 0; v < 4; ++v) column[i][v] = column[i + window - kept][v];
    UNROLLED for (int i = kept; i < window; ++i) load(first + i, column[i]);
    UNROLLED for (int i = 0; i < window; ++i, w += 4 * BLOCK)
      UNROLLED for (int v = 0; v < 4; ++v) dot(sum[v], column[i][v], _mm512_loadu_si512(w + v * BLOCK));
    for (int64_t tap = tall * window; tap < taps; tap += 4, w += 4 * BLOCK) {
      __m512i p[4], pixels[4];
      UNROLLED for (int i = 0; i < 4; ++i) {
        const int64_t t = std::min(tap + i, taps - 1), line = window > 0 ? tall : t / stage.kernel_w;
        const int64_t at = first + t - line * stage.kernel_w;
        p[i] = inside(at) ? read(rows[line] + at * C) : padding;
      }
      interleave(p, pixels);
      UNROLLED for (int v = 0; v < 4; ++v) dot(sum[v], pixels[v], _mm512_loadu_si512(w + v * BLOCK));
    }
    __m512 real[4];
    UNROLLED for (int v = 0; v < 4; ++v)
      real[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[v]), _mm512_loadu_ps(scales + v * LANES), _mm512_loadu_ps(offsets + v * LANES));
    const __m512i bytes = packed(real, low, high);
    whole ? _mm512_storeu_si512(to + x * C, bytes) : _mm512_mask_storeu_epi8(to + x * C, mask, bytes);
  }
}

template <int window, int stride>
void depthwise_rows(const Stage& stage, const Rows& in, int64_t a, int64_t b, uint8_t* to) {
  static thread_local std::vector<uint8_t> padding;
  static thread_local std::vector<const uint8_t*> rows;
  const int64_t C = stage.inputs, slid = std::min(window, 4) * window;
  const int64_t fours = window + (stage.kernel_h * stage.kernel_w - slid + 3) / 4;
  padding.assign(stage.width_in * C, static_cast<uint8_t>(stage.zero));
  rows.resize(stage.kernel_h);
  const auto kernel = C >= BLOCK ? depthwise_row<window, stride, true> : depthwise_row<window, stride, false>;
  // The last block lies over the one before it where channels do not go up.
  for (int64_t block = 0; block * BLOCK < C; ++block) {
    const int64_t channel = std::max<int64_t>(0, std::min(block * BLOCK, C - BLOCK));
    for (int64_t y = a; y < b; ++y) {
      for (int64_t line = 0; line < stage.kernel_h; ++line) {
        const int64_t r = y * stage.stride_h - stage.padding_h + line;
        rows[line] = (r < 0 || r >= stage.height_in ? padding.data() : in.row(r)) + channel;
      }
      kernel(stage, rows.data(), stage.weights + block * fours * 4 * BLOCK, stage.starts + block * BLOCK,
             stage.scales + block * BLOCK, stage.offsets + block * BLOCK, C >= BLOCK ? ~0ull : (1ull << C) - 1,
             to + (y - a) * stage.width * C + channel);
    }
  }
}

void depthwise(const Stage& stage, const Rows& in, int64_t a, int64_t b, uint8_t* to) {
  const int64_t window = stage.kernel_h == stage.kernel_w ? stage.kernel_w : 0;
  const auto rows = window == 3 && stage.stride_w == 1   ? depthwise_rows<3, 1>
                    : window == 3 && stage.stride_w == 2 ? depthwise_rows<3, 2>
                    : window == 3                        ? depthwise_rows<3, 3>
                    : window == 5 && stage.stride_w == 1 ? depthwise_rows<5, 1>
                    : window == 5 && stage.stride_w == 2 ? depthwise_rows<5, 2>
                    : window == 5                        ? depthwise_rows<5, 5>
                                                         : depthwise_rows<0, 0>;
  rows(stage, in, a, b, to);
}

// ---- the chain

// What lies between two stages: rows [first, last) of an image.
struct Lines {
  std::vector<uint8_t> values;
  int64_t first, last;
};

// Some output rows of one image.
class Chain {
 public:
  Chain(const std::vector<Stage>& stages, const uint8_t* image, const Skip& skip, std::vector<Lines>& lines)
      : stages_(stages), image_(image), skip_(skip), lines_(lines) {
    for (Lines& between : lines_) between.first = between.last = 0;
  }

  void run(int64_t a, int64_t b, int64_t strip, uint8_t* to) {
    const Stage& last = stages_.back();
    const int64_t pixel = last.outputs * (last.to_float ? sizeof(float) : 1);
    for (int64_t y = a; y < b; y += strip) {
      Skip skip = skip_;
      if (skip.values != nullptr) skip.values += y * last.width * last.outputs;
      rows(stages_.size() - 1, y, std::min(y + strip, b), to + y * last.width * pixel, skip);
    }
  }

 private:
  void rows(size_t index, int64_t a, int64_t b, uint8_t* to, const Skip& skip) {
    const Stage& stage = stages_[index];
    const int64_t pitch = stage.width_in * stage.inputs;
    const int64_t first = std::clamp<int64_t>(a * stage.stride_h - stage.padding_h, 0, stage.height_in);
    const int64_t last = (b - 1) * stage.stride_h - stage.padding_h + stage.kernel_h;
    const Rows in{index == 0 ? image_ : demand(index - 1, first, std::clamp<int64_t>(last, first, stage.height_in)), pitch};
    stage.depthwise ? depthwise(stage, in, a, b, to) : dense(stage, in, a, b, to, skip);
  }

  // Rows [first, last) behind stage `index`, of which those computed before are kept; row 0 would be at the address.
  const uint8_t* demand(size_t index, int64_t first, int64_t last) {
    const Stage& stage = stages_[index];
    Lines& lines = lines_[index];
    const int64_t pitch = stage.width * stage.outputs;
    lines.values.resize(std::max<size_t>(lines.values.size(), (last - first) * pitch + SLACK));
    if (first < lines.first || first >= lines.last) {
      lines.first = lines.last = first;
    } else {
      std::memmove(lines.values.data(), lines.values.data() + (first - lines.first) * pitch, (lines.last - first) * pitch);
      lines.first = first;
    }
    if (last > lines.last) {
      rows(index, lines.last, last, lines.values.data() + (lines.last - first) * pitch, Skip{nullptr, 0});
      lines.last = last;
    }
    return lines.values.data() - first * pitch;
  }

  const std::vector<Stage>& stages_;
  const uint8_t* image_;
  const Skip& skip_;
  std::vector<Lines>& lines_;
};

// How many output rows at a time, so that what the stages read stays in the cache; strips of nearly equal height.
int64_t strip_of(const std::vector<Stage>& stages, int64_t rows) {
  const auto bytes = [&](int64_t needed) {
    int64_t total = 0;
    for (size_t i = stages.size(); i-- > 0;) {
      needed = (needed - 1) * stages[i].stride_h + stages[i].kernel_h;
      total += needed * stages[i].width_in * stages[i].inputs;
    }
    return total;
  };
  int64_t strip = rows;
  while (strip > 1 && bytes(strip) > IN_CACHE) --strip;
  const int64_t strips = (rows + strip - 1) / strip;
  return (rows + strips - 1) / strips;
}

#endif  // OCTAVO_VNNI

// x uint8 [N, C, H, W] through every stage → [N, C', H', W'], channels last in memory; uint8, or float32.
//
//     weights, starts, scales, offsets  of each stage, packed
//     geometry  of each stage: depthwise, outputs, kernel h and w, stride h and w, padding h and w before and behind,
//               zero, low, high
//     skip      uint8 like the result, times skip_scale added to the last stage's
Tensor convolutions(const Tensor& x, const std::optional<Tensor>& skip, double skip_scale, at::TensorList weights,
                    at::TensorList starts, at::TensorList scales, at::TensorList offsets, at::IntArrayRef geometry,
                    bool to_float) {
#ifdef OCTAVO_VNNI
  constexpr int64_t FACTS = 13;
  const auto in_order = [](const Tensor& image) { return image.permute({0, 2, 3, 1}).contiguous(); };
  const Tensor image = in_order(x);
  std::vector<Stage> stages;
  int64_t height = x.size(2), width = x.size(3), channels = x.size(1);
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t* g = geometry.data() + i * FACTS;
    Stage stage{g[0] != 0, channels, g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12],
                to_float && i + 1 == weights.size(), weights[i].const_data_ptr<int8_t>(), starts[i].const_data_ptr<int32_t>(),
                scales[i].const_data_ptr<float>(), offsets[i].const_data_ptr<float>(), height, width, 0, 0};
    height = stage.height = (height + stage.padding_h + stage.behind_h - stage.kernel_h) / stage.stride_h + 1;
    width = stage.width = (width + stage.padding_w + stage.behind_w - stage.kernel_w) / stage.stride_w + 1;
    channels = stage.outputs;
    stages.push_back(stage);
  }
  Tensor out = at::empty({x.size(0), height, width, channels}, x.options().dtype(to_float ? at::kFloat : at::kByte));
  const Tensor added = skip.has_value() ? in_order(*skip) : Tensor();
  TORCH_CHECK(!skip.has_value() || added.sizes() == out.sizes(), "int8 convolutions: the skip is not like the result");
  if (out.numel() == 0) return out.permute({0, 3, 1, 2});
  int64_t N = x.size(0);
  if (stages.size() == 1 && stages[0].pointwise()) {  // one tall image: weights are read once for several
    stages[0].height_in = stages[0].height = height = N * height;
    N = 1;
  }
  // Images are shared out among the threads; rows, where there are fewer images or they do not go up.
  const int64_t threads = at::get_num_threads();
  const int64_t cut = N % threads == 0 || N >= 4 * threads ? 1 : std::min(threads, height), part = (height + cut - 1) / cut;
  const int64_t strip = strip_of(stages, part);
  const int64_t size = out.element_size() * height * width * channels;
  at::parallel_for(0, N * cut, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<Lines> lines;
    lines.resize(std::max(lines.size(), stages.size()));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / cut, first = task % cut * part;
      const Skip own{added.defined() ? added.const_data_ptr<uint8_t>() + n * height * width * channels : nullptr,
                     static_cast<float>(skip_scale)};
      Chain(stages, image.const_data_ptr<uint8_t>() + n * image.stride(0), own, lines)
          .run(first, std::min(first + part, height), strip, static_cast<uint8_t*>(out.data_ptr()) + n * size);
    }
  });
  return out.permute({0, 3, 1, 2});
#else
  TORCH_CHECK(false, "int8 convolutions need a CPU with AVX-512 VNNI");
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(octavo, m) {
  m.def(
      "int8_convolutions(Tensor x, Tensor? skip, float skip_scale, Tensor[] weights, Tensor[] starts, Tensor[] scales, "
      "Tensor[] offsets, int[] geometry, bool to_float) -> Tensor");
}

TORCH_LIBRARY_IMPL(octavo, CPU, m) { m.impl("int8_convolutions", convolutions); }
