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
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

using at::Tensor;

constexpr int64_t BLOCK = VECTORS * LANES;  // channels whose results make one vector of bytes
constexpr int64_t IN_CACHE = 384 << 10;  // bytes that the stages read in one strip; the second nearest cache has 1 MiB or more
constexpr int64_t SLACK = 64;  // integers that may be read behind the lines

struct Stage {
  bool depthwise;
  int64_t inputs, outputs;  // channels
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t padding_h, padding_w, behind_h, behind_w;  // before the first row and column, and behind the last
  int64_t zero;       // of what it reads: the value of padding
  int64_t low, high;  // of the bytes that it writes
  int64_t groups;     // of channels, if it is dense: each reads its own
  bool to_float;      // writes float32 instead
  const int8_t* weights;
  const int32_t* starts;
  const float* scales;
  const float* offsets;
  int64_t height_in, width_in, height, width;  // of its images
  int64_t pixel;                               // channels of the result, of which a group writes `outputs`

  int64_t tall() const { return (kernel_h - 1) * dilation_h + 1; }  // rows that a window spans
  int64_t broad() const { return (kernel_w - 1) * dilation_w + 1; }
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

// ---- dense

// What is done to the sums of one pixel, `wide` vectors of output channels: scaled, offset, and written.
template <int wide>
INLINE inline void finish(const Stage& stage, const I32 sum[wide], int64_t channel, void* to, int64_t pixel, const Skip& skip) {
  F32 real[wide];
  UNROLLED for (int j = 0; j < wide; ++j)
    real[j] = fused(to_floats(sum[j]), load(stage.scales + channel + j * LANES), load(stage.offsets + channel + j * LANES));
  const F32 added = every(skip.scale);
  const int64_t at = pixel * stage.pixel + channel;
  if constexpr (wide == VECTORS) {
    if (!stage.to_float && channel + BLOCK <= stage.outputs) {
      if (skip.values != nullptr) {
        I32 other[VECTORS];
        unpacked(load_block(skip.values + at), other);
        UNROLLED for (int j = 0; j < VECTORS; ++j) real[j] = fused(to_floats(other[j]), added, real[j]);
      }
      store_block(static_cast<uint8_t*>(to) + at, packed(real, every_byte(stage.low), every_byte(stage.high)));
      return;
    }
  }
  UNROLLED for (int j = 0; j < wide; ++j) {
    const Lanes some = lanes(stage.outputs - channel - j * LANES);
    if (skip.values != nullptr) real[j] = fused(to_floats(widened(skip.values + at + j * LANES, some)), added, real[j]);
    if (stage.to_float) {
      store(static_cast<float*>(to) + at + j * LANES, real[j], some);
    } else {
      const I32 low = every(static_cast<int32_t>(stage.low)), high = every(static_cast<int32_t>(stage.high));
      store(static_cast<uint8_t*>(to) + at + j * LANES, min(max(to_integers(real[j]), low), high), some);
    }
  }
}

// What a window reads: lines of `run` integers, so far from where it begins.
struct Window {
  std::vector<int64_t> lines;
  int64_t run;
};

// Of a group of channels: whole rows of the kernel, where they lie together in memory; else tap by tap.
Window window_of(const Stage& stage, int64_t pitch, int64_t group) {
  Window window;
  const int64_t inputs = stage.inputs / stage.groups;
  const bool whole = stage.groups == 1 && stage.dilation_w == 1;
  for (int64_t y = 0; y < stage.kernel_h; ++y)
    for (int64_t x = 0; x < (whole ? 1 : stage.kernel_w); ++x)
      window.lines.push_back(y * stage.dilation_h * pitch + x * stage.dilation_w * stage.inputs + group * inputs);
  window.run = round_up(whole ? stage.kernel_w * inputs : inputs, GROUP);
  return window;
}

// `rows` pixels by `wide` vectors of output channels. left[i] is where the window of pixel i begins.
template <int rows, int wide>
void tile(const Stage& stage, const Left* const* left, const Window& window, const int8_t* weights, int64_t channel, void* to,
          int64_t pixel, const Skip& skip) {
  I32 sum[rows][wide];
  UNROLLED for (int j = 0; j < wide; ++j) {
    const I32 start = load(stage.starts + channel + j * LANES);
    UNROLLED for (int i = 0; i < rows; ++i) sum[i][j] = start;
  }
  for (const int64_t line : window.lines) {
    const Left* from[rows];
    UNROLLED for (int i = 0; i < rows; ++i) from[i] = left[i] + line;
    for (int64_t k = 0; k < window.run; k += GROUP, weights += wide * LANES * GROUP) {
      Right vector[wide];
      UNROLLED for (int j = 0; j < wide; ++j) vector[j] = load(weights + j * LANES * GROUP);
      UNROLLED for (int i = 0; i < rows; ++i) {
        const Spread all = spread(from[i] + k);
        UNROLLED for (int j = 0; j < wide; ++j) dot(sum[i][j], all, vector[j]);
      }
    }
  }
  UNROLLED for (int i = 0; i < rows; ++i) finish<wide>(stage, sum[i], channel, to, pixel + i, skip);
}

// `wide` vectors of output channels of all pixels. The last tile lies over the one before it where they do not go up.
template <int rows, int wide>
void columns(const Stage& stage, const std::vector<const Left*>& left, const Window& window, const int8_t* weights,
             int64_t channel, void* to, const Skip& skip) {
  const auto pixels = static_cast<int64_t>(left.size());
  if (pixels < rows) {
    for (int64_t i = 0; i < pixels; ++i) tile<1, wide>(stage, left.data() + i, window, weights, channel, to, i, skip);
    return;
  }
  for (int64_t i = 0; i < pixels; i += rows) {
    const int64_t first = std::min(i, pixels - rows);
    tile<rows, wide>(stage, left.data() + first, window, weights, channel, to, first, skip);
  }
}

// All pixels by `wide` vectors: as many of them at a time as registers hold sums of.
using Columns = decltype(&columns<1, 1>);
template <int wide>
constexpr Columns COLUMNS_OF = columns<std::min<int>(2 * ROWS, ROWS * WIDE / wide), wide>;

Columns columns_of(int64_t wide) {
  if constexpr (VECTORS == 4)
    return wide == 4 ? COLUMNS_OF<4> : wide == 3 ? COLUMNS_OF<3> : wide == 2 ? COLUMNS_OF<2> : COLUMNS_OF<1>;
  return COLUMNS_OF<1>;
}

// Where the windows of a stage are read: rows of integers, row r at base + r · pitch.
struct Source {
  const Left* base;
  int64_t pitch;
};

// A copy of rows first … first + count of the image, padded, as left integers.
Source copied(const Stage& stage, const Rows& in, int64_t first, int64_t count) {
  static thread_local std::vector<Left> copy;
  const int64_t edge = stage.padding_w * stage.inputs, middle = stage.width_in * stage.inputs;
  const int64_t pitch = edge + middle + stage.behind_w * stage.inputs;
  const auto zero = static_cast<Left>(stage.zero);
  copy.resize(count * pitch + SLACK);
  for (int64_t r = 0; r < count; ++r) {
    Left* const line = copy.data() + r * pitch;
    const bool inside = first + r >= 0 && first + r < stage.height_in;
    std::fill(line, line + (inside ? edge : pitch), zero);
    if (inside) {
      std::copy_n(in.row(first + r), middle, line + edge);
      std::fill(line + edge + middle, line + pitch, zero);
    }
  }
  return {copy.data(), pitch};
}

// The image where it is, if its windows need no padding, and all groups of integers can be read.
Source source_of(const Stage& stage, const Rows& in, int64_t first, int64_t count) {
  if constexpr (std::is_same_v<Left, uint8_t>)
    if (stage.kernel_h * stage.kernel_w == 1 && !stage.padded() && stage.inputs / stage.groups % GROUP == 0)
      return {reinterpret_cast<const Left*>(in.row(first)), in.pitch};
  return copied(stage, in, first, count);
}

// The pixels of output rows [a, b), written from `to` on.
void dense(const Stage& stage, const Rows& in, int64_t a, int64_t b, void* to, const Skip& skip) {
  static thread_local std::vector<const Left*> left;
  const int64_t C = stage.inputs, count = (b - 1 - a) * stage.stride_h + stage.tall();
  const Source from = source_of(stage, in, a * stage.stride_h - stage.padding_h, count);
  left.resize((b - a) * stage.width);
  const Left** next = left.data();
  for (int64_t y = 0; y < b - a; ++y)
    for (int64_t x = 0; x < stage.width; ++x) *next++ = from.base + y * stage.stride_h * from.pitch + x * stage.stride_w * C;
  Stage own = stage;  // of a group
  Skip added = skip;
  own.outputs = stage.outputs / stage.groups;
  for (int64_t group = 0; group < stage.groups; ++group) {
    const Window window = window_of(stage, from.pitch, group);
    for (int64_t channel = 0; channel < own.outputs; channel += BLOCK) {
      const int64_t wide = std::min<int64_t>(VECTORS, (own.outputs - channel + LANES - 1) / LANES);
      columns_of(wide)(own, left, window, own.weights, channel, to, added);
      own.weights += static_cast<int64_t>(window.lines.size()) * window.run * wide * LANES;
    }
    own.starts += round_up(own.outputs, LANES);
    own.scales += round_up(own.outputs, LANES);
    own.offsets += round_up(own.outputs, LANES);
    to = static_cast<uint8_t*>(to) + own.outputs * (stage.to_float ? sizeof(float) : 1);
    if (added.values != nullptr) added.values += own.outputs;
  }
}

// ---- depthwise

// A block of channels in the order of `packed`, or `count` of them, in their own.
inline void store_floats(float* to, const F32 x[VECTORS], int64_t count) {
  float all[BLOCK], vector[LANES];
  for (int64_t v = 0; v < VECTORS; ++v) {
    store(vector, x[v]);
    for (int64_t quarter = 0; quarter < 4; ++quarter) std::copy_n(vector + 4 * quarter, 4, all + 4 * (quarter * VECTORS + v));
  }
  std::copy_n(all, count, to);
}

// One output row of a block of channels, or of `count` if not `whole`. rows[r]: line r of the windows, at the first of
// these channels. Square windows of width `window` slide: their first GROUP lines stay in registers, column by column, and
// each pixel loads `stride` new ones. The other taps, of other windows all, are taken GROUP at a time.
template <int window, int stride, bool whole>
void depthwise_row(const Stage& stage, const uint8_t* const* rows, const int8_t* weights, const int32_t* starts,
                   const float* scales, const float* offsets, int64_t count, void* to) {
  constexpr int tall = std::min<int>(window, GROUP), kept = std::max(window - stride, 0);
  const int64_t C = stage.inputs, taps = window > 0 ? window * window : stage.kernel_h * stage.kernel_w;
  const Bytes low = every_byte(stage.low), high = every_byte(stage.high), padding = every_byte(stage.zero);
  const auto inside = [&](int64_t x) { return static_cast<uint64_t>(x) < static_cast<uint64_t>(stage.width_in); };
  const auto read = [&](const uint8_t* from) INLINE { return whole ? load_block(from) : load_block(from, count); };
  Pixels column[std::max(window, 1)][VECTORS];
  const auto fetch = [&](int64_t x, Pixels into[VECTORS]) INLINE {
    Bytes p[GROUP];
    if (inside(x)) {
      UNROLLED for (int i = 0; i < GROUP; ++i) p[i] = i < tall ? read(rows[i] + x * C) : every_byte(0);
    } else {
      UNROLLED for (int i = 0; i < GROUP; ++i) p[i] = padding;
    }
    interleave(p, into);
  };
  UNROLLED for (int i = 0; i < kept; ++i) fetch(i - stage.padding_w, column[i + window - kept]);
  for (int64_t x = 0; x < stage.width; ++x) {
    const int64_t first = x * stage.stride_w - stage.padding_w;
    const int8_t* w = weights;
    I32 sum[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; ++v) sum[v] = load(starts + v * LANES);
    UNROLLED for (int i = 0; i < kept; ++i)
      UNROLLED for (int v = 0; v < VECTORS; ++v) column[i][v] = column[i + window - kept][v];
    UNROLLED for (int i = kept; i < window; ++i) fetch(first + i, column[i]);
    UNROLLED for (int i = 0; i < window; ++i, w += GROUP * BLOCK)
      UNROLLED for (int v = 0; v < VECTORS; ++v) dot(sum[v], column[i][v], load(w + v * LANES * GROUP));
    for (int64_t tap = tall * window; tap < taps; tap += GROUP, w += GROUP * BLOCK) {
      Bytes p[GROUP];
      Pixels pixels[VECTORS];
      UNROLLED for (int i = 0; i < GROUP; ++i) {
        const int64_t t = std::min(tap + i, taps - 1), line = window > 0 ? t / window : t / stage.kernel_w;
        const int64_t at = first + (window > 0 ? t - line * window : (t - line * stage.kernel_w) * stage.dilation_w);
        p[i] = inside(at) ? read(rows[line] + at * C) : padding;
      }
      interleave(p, pixels);
      UNROLLED for (int v = 0; v < VECTORS; ++v) dot(sum[v], pixels[v], load(w + v * LANES * GROUP));
    }
    F32 real[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; ++v)
      real[v] = fused(to_floats(sum[v]), load(scales + v * LANES), load(offsets + v * LANES));
    if (stage.to_float) {
      store_floats(static_cast<float*>(to) + x * C, real, count);
    } else {
      auto* const at = static_cast<uint8_t*>(to) + x * C;
      whole ? store_block(at, packed(real, low, high)) : store_block(at, packed(real, low, high), count);
    }
  }
}

template <int window, int stride>
void depthwise_rows(const Stage& stage, const Rows& in, int64_t a, int64_t b, void* to) {
  static thread_local std::vector<uint8_t> padding;
  static thread_local std::vector<const uint8_t*> rows;
  const int64_t C = stage.inputs, slid = std::min<int64_t>(window, GROUP) * window;
  const int64_t groups = window + (stage.kernel_h * stage.kernel_w - slid + GROUP - 1) / GROUP;
  padding.assign(stage.width_in * C, static_cast<uint8_t>(stage.zero));
  rows.resize(stage.kernel_h);
  const auto kernel = C >= BLOCK ? depthwise_row<window, stride, true> : depthwise_row<window, stride, false>;
  // The last block lies over the one before it where channels do not go up.
  for (int64_t block = 0; block * BLOCK < C; ++block) {
    const int64_t channel = std::max<int64_t>(0, std::min(block * BLOCK, C - BLOCK));
    for (int64_t y = a; y < b; ++y) {
      for (int64_t line = 0; line < stage.kernel_h; ++line) {
        const int64_t r = y * stage.stride_h - stage.padding_h + line * stage.dilation_h;
        rows[line] = (r < 0 || r >= stage.height_in ? padding.data() : in.row(r)) + channel;
      }
      kernel(stage, rows.data(), stage.weights + block * groups * GROUP * BLOCK, stage.starts + block * BLOCK,
             stage.scales + block * BLOCK, stage.offsets + block * BLOCK, std::min(C, BLOCK),
             static_cast<uint8_t*>(to) + ((y - a) * stage.width * C + channel) * (stage.to_float ? sizeof(float) : 1));
    }
  }
}

void depthwise(const Stage& stage, const Rows& in, int64_t a, int64_t b, void* to) {
  const bool slides = stage.kernel_h == stage.kernel_w && stage.dilation_h * stage.dilation_w == 1;
  const int64_t window = slides ? stage.kernel_w : 0;
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
    const int64_t last = (b - 1) * stage.stride_h - stage.padding_h + stage.tall();
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
      needed = (needed - 1) * stages[i].stride_h + stages[i].tall();
      total += needed * stages[i].width_in * stages[i].inputs;
    }
    return total;
  };
  int64_t strip = rows;
  while (strip > 1 && bytes(strip) > IN_CACHE) --strip;
  const int64_t strips = (rows + strip - 1) / strip;
  return (rows + strips - 1) / strips;
}

// x uint8 [N, C, H, W] through every stage → [N, C', H', W'], channels last in memory; uint8, or float32.
//
//     weights, starts, scales, offsets  of each stage, packed
//     geometry  of each stage: depthwise, outputs, kernel h and w, stride h and w, dilation h and w, padding h and w before
//               and behind, zero, low, high, groups
//     skip      uint8 like the result, times skip_scale added to the last stage's
Tensor convolutions(const Tensor& x, const std::optional<Tensor>& skip, double skip_scale, at::TensorList weights,
                    at::TensorList starts, at::TensorList scales, at::TensorList offsets, at::IntArrayRef geometry,
                    bool to_float) {
  constexpr int64_t FACTS = 16;
  const auto in_order = [](const Tensor& image) { return image.permute({0, 2, 3, 1}).contiguous(); };
  const Tensor image = in_order(x);
  std::vector<Stage> stages;
  int64_t height = x.size(2), width = x.size(3), channels = x.size(1);
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t* g = geometry.data() + i * FACTS;
    Stage stage{g[0] != 0, channels, g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12],
                g[13], g[14], g[15], to_float && i + 1 == weights.size(), weights[i].const_data_ptr<int8_t>(), starts[i].const_data_ptr<int32_t>(),
                scales[i].const_data_ptr<float>(), offsets[i].const_data_ptr<float>(), height, width, 0, 0, g[1]};
    height = stage.height = (height + stage.padding_h + stage.behind_h - stage.tall()) / stage.stride_h + 1;
    width = stage.width = (width + stage.padding_w + stage.behind_w - stage.broad()) / stage.stride_w + 1;
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
}

}  // namespace

OCTAVO_FRAGMENT(OCTAVO_OPERATORS, m) {
  m.def(
      "int8_convolutions(Tensor x, Tensor? skip, float skip_scale, Tensor[] weights, Tensor[] starts, Tensor[] scales, "
      "Tensor[] offsets, int[] geometry, bool to_float) -> Tensor");
}

OCTAVO_IMPLEMENTATION(OCTAVO_OPERATORS, CPU, m) { m.impl("int8_convolutions", convolutions); }
