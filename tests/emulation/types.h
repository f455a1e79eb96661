// CUDA's small types: built-in vectors and the two 16-bit floating-point types, which here only hold bits.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#define ICM_SIMT_VECTORS(T, name, alignment_1, alignment_2)          \
  struct name##1 { T x; };                                           \
  struct alignas(alignment_1) name##2 { T x, y; };                   \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(alignment_2) name##4 { T x, y, z, w; };             \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

// Aligned as on the device, so that the sanitizer sees a misaligned access.
ICM_SIMT_VECTORS(float, float, 8, 16)
ICM_SIMT_VECTORS(int, int, 8, 16)
ICM_SIMT_VECTORS(unsigned, uint, 8, 16)
ICM_SIMT_VECTORS(short, short, 4, 8)
ICM_SIMT_VECTORS(unsigned short, ushort, 4, 8)
ICM_SIMT_VECTORS(signed char, char, 2, 4)
ICM_SIMT_VECTORS(unsigned char, uchar, 2, 4)
ICM_SIMT_VECTORS(double, double, 16, 16)
ICM_SIMT_VECTORS(long long, longlong, 16, 16)
#undef ICM_SIMT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// No arithmetic and no implicit conversion: kernels convert to the type of sums by name.
struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(2) __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // the device's NaN
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16, exponent = (value.bits >> 10) & 31u;
  const uint32_t fraction = value.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return {0x7fff};  // the device's NaN
  if (magnitude >= 0x477ff000u)
    return {uint16_t(sign | 0x7c00u)};  // from half-way above the largest number: infinity
  if (magnitude < 0x38800000u) {        // a denormal, in steps of 2^-24
    // Adding 0.5 leaves the steps as the last bits, rounded to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13))};
}

inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline __half __float2half(float value) { return __float2half_rn(value); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
