// Vectors of `simd.h` in C++ alone: what compiles on every CPU. Compilers make vectors of these loops where they can.

#pragma once

#include <type_traits>

namespace {

template <typename Number, int64_t count>
struct Vector {
  Number at[count];
  Number& operator[](int64_t i) { return at[i]; }
  const Number& operator[](int64_t i) const { return at[i]; }
};

using F32 = Vector<float, LANES>;
using I32 = Vector<int32_t, LANES>;
using Lanes = int64_t;  // how many
using Left = uint8_t;

constexpr int64_t GROUP = 4, VECTORS = 1;
constexpr int64_t ROWS = 4, WIDE = 1;

using Right = Vector<int8_t, LANES * GROUP>;
using Spread = Vector<uint8_t, GROUP>;
using Pixels = Vector<uint8_t, LANES * GROUP>;
using Bytes = Vector<uint8_t, LANES>;

// of(0) … of(15)
template <typename Of>
INLINE inline auto each(const Of& of) {
  Vector<decltype(of(0)), LANES> to;
  for (int i = 0; i < LANES; ++i) to[i] = of(i);
  return to;
}

inline Lanes lanes(int64_t count) { return std::clamp<int64_t>(count, 0, LANES); }

// ---- float32 and int32

template <typename Number>
inline auto every(Number x) {
  return each([=](int) { return x; });
}
template <typename Number>
  requires std::is_same_v<Number, float> || std::is_same_v<Number, int32_t>
inline auto load(const Number* from, Lanes some = LANES) {
  return each([=](int i) { return i < some ? from[i] : Number(0); });
}
template <typename To, typename Number>
inline void store(To* to, const Vector<Number, LANES>& x, Lanes some = LANES) {
  for (int64_t i = 0; i < some; ++i) to[i] = static_cast<To>(x[i]);
}
inline F32 add(const F32& a, const F32& b) {
  return each([&](int i) { return a[i] + b[i]; });
}
inline F32 subtract(const F32& a, const F32& b) {
  return each([&](int i) { return a[i] - b[i]; });
}
inline F32 multiply(const F32& a, const F32& b) {
  return each([&](int i) { return a[i] * b[i]; });
}
inline F32 divide(const F32& a, const F32& b) {
  return each([&](int i) { return a[i] / b[i]; });
}
inline F32 fused(const F32& a, const F32& b, const F32& c) {
  return each([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
template <typename Number>
inline auto min(const Vector<Number, LANES>& a, const Vector<Number, LANES>& b) {
  return each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
template <typename Number>
inline auto max(const Vector<Number, LANES>& a, const Vector<Number, LANES>& b) {
  return each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline F32 nearest(const F32& x) {
  return each([&](int i) { return std::nearbyint(x[i]); });
}
inline F32 floor(const F32& x) {
  return each([&](int i) { return std::floor(x[i]); });
}
inline F32 times_power_of_two(const F32& x, const F32& n) {
  return each([&](int i) { return std::ldexp(x[i], static_cast<int>(n[i])); });
}
inline F32 if_positive(const F32& x, const F32& then, const F32& otherwise) {
  return each([&](int i) { return x[i] > 0 ? then[i] : otherwise[i]; });
}
inline F32 keep(const F32& x, Lanes some, const F32& others) {
  return each([&](int i) { return i < some ? x[i] : others[i]; });
}
inline I32 add(const I32& a, const I32& b) {
  return each([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a[i]) + static_cast<uint32_t>(b[i])); });
}
inline F32 to_floats(const I32& x) {
  return each([&](int i) { return static_cast<float>(x[i]); });
}
// To nearest, ties to even; what does not fit, and NaN, is the lowest, as on x86.
inline I32 to_integers(const F32& x) {
  return each([&](int i) {
    const float q = std::nearbyint(x[i]);
    return q >= -0x1p31f && q < 0x1p31f ? static_cast<int32_t>(q) : INT32_MIN;
  });
}
inline I32 bits(const F32& x) {
  I32 to;
  std::memcpy(&to, &x, sizeof(to));
  return to;
}
inline F32 from_bits(const I32& x) {
  F32 to;
  std::memcpy(&to, &x, sizeof(to));
  return to;
}
inline I32 both(const I32& a, const I32& b) {
  return each([&](int i) { return a[i] & b[i]; });
}

template <typename Join>
inline float joined(F32 x, const Join& join) {
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) x[i] = join(x[i], x[i + half]);
  return x[0];
}
inline float total(const F32& x) { return joined(x, [](float a, float b) { return a + b; }); }
inline float highest(const F32& x) { return joined(x, [](float a, float b) { return a > b ? a : b; }); }

inline float highest_bits(const F32& x) {  // as int32
  const I32 all = bits(x);
  const int32_t most = *std::max_element(all.at, all.at + LANES);
  float to;
  std::memcpy(&to, &most, 4);
  return to;
}

inline I32 widened(const uint8_t* from, Lanes some) {
  return each([=](int i) { return i < some ? static_cast<int32_t>(from[i]) : 0; });
}

// ---- products

inline Right load(const int8_t* from) {
  Right to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}
inline Spread spread(const Left* from) { return {{from[0], from[1], from[2], from[3]}}; }
inline void dot(I32& sum, const Spread& u, const Right& w) {
  for (int i = 0; i < LANES; ++i) {
    const int32_t more = u[0] * w[4 * i] + u[1] * w[4 * i + 1] + u[2] * w[4 * i + 2] + u[3] * w[4 * i + 3];
    sum[i] = static_cast<int32_t>(static_cast<uint32_t>(sum[i]) + static_cast<uint32_t>(more));
  }
}
inline void dot(I32& sum, const Pixels& u, const Right& w) {
  for (int i = 0; i < LANES * GROUP; ++i)
    sum[i / GROUP] = static_cast<int32_t>(static_cast<uint32_t>(sum[i / GROUP]) + static_cast<uint32_t>(u[i] * w[i]));
}
inline void weave(const uint8_t* const rows[GROUP], int8_t* to) {
  for (int i = 0; i < LANES * GROUP; ++i) to[i] = static_cast<int8_t>(rows[i % GROUP][i / GROUP] ^ 0x80);
}

// ---- blocks of sixteen bytes

inline Bytes every_byte(int64_t x) {
  return each([=](int) { return static_cast<uint8_t>(x); });
}
inline Bytes load_block(const uint8_t* from, int64_t count = LANES) {
  return each([=](int i) { return i < count ? from[i] : uint8_t(0); });
}
inline void store_block(uint8_t* to, const Bytes& x, int64_t count = LANES) { std::memcpy(to, x.at, count); }
inline Bytes packed(const F32 x[VECTORS], const Bytes& low, const Bytes& high) {
  const I32 q = to_integers(x[0]);
  return each([&](int i) { return static_cast<uint8_t>(std::clamp<int32_t>(q[i], low[i], high[i])); });
}
inline void unpacked(const Bytes& bytes, I32 to[VECTORS]) { to[0] = widened(bytes.at, LANES); }
inline void interleave(const Bytes p[GROUP], Pixels to[VECTORS]) {
  for (int i = 0; i < LANES * GROUP; ++i) to[0][i] = p[i % GROUP][i / GROUP];
}

}  // namespace
