// Vectors of the instruction set that this translation unit is compiled for.
//
// Every .cpp in this folder is compiled once per instruction set (ICM_ISA names it), so everything
// lives in a namespace of that name: an inline function compiled for AVX-512 must never be the copy
// that the linker keeps for an older processor. For the same reason nothing here may include a
// header that defines non-trivial inline functions (the C++ library's, torch's).
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../../icm_math.h"

#define ICM_INLINE inline __attribute__((always_inline))
#define ICM_LAMBDA_INLINE __attribute__((always_inline))

namespace icm::ICM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t ivec __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t uvec __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorTypes<double> {
  typedef double vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t ivec __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t uvec __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorTypes<T>::vec;
template <typename T>
using IVec = typename VectorTypes<T>::ivec;
template <typename T>
using UVec = typename VectorTypes<T>::uvec;

template <typename T>
inline constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
ICM_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // exact for every x, signed zero and NaN included
}

template <typename T>
ICM_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
ICM_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// One rounding where the hardware has it. The kernels are compiled without implicit contraction, so
// that a score has the same bits in every pass.
ICM_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

ICM_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

struct Fma {
  template <typename V>
  ICM_INLINE V operator()(V a, V b, V c) const {
    return fma(a, b, c);
  }
};

// The larger of x and least; NaN if x is NaN. The operand order of the instruction matters: with a NaN
// it returns its second operand.
ICM_INLINE Vec<float> at_least(Vec<float> x, Vec<float> least) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)least, (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)least, (__m256)x);
#else
  return x < least ? least : x;
#endif
}

ICM_INLINE Vec<double> at_least(Vec<double> x, Vec<double> least) { return x < least ? least : x; }

// a where the mask is set, else b.
template <typename T>
ICM_INLINE Vec<T> select(IVec<T> mask, Vec<T> a, Vec<T> b) {
  return mask ? a : b;
}

template <typename T>
ICM_INLINE bool any(IVec<T> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  bool found = false;
  for (int k = 0; k < kLanes<T>; ++k) found |= mask[k] != 0;
  return found;
#endif
}

// Coefficients of 2^f on [-1/2, 1/2] with p(0) = 1, so that 2^n is exact. Float: minimised relative
// error 9.2e-8 (1.5 units of the last place with rounding). Double: Taylor, truncation 4e-18.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float exponent_bias = 127.0f;
  static constexpr float round_magic = 0x1.8p23f;
  static constexpr float coefficients[] = {1.326469372244797e-3f, 9.67151498430887e-3f,
                                           5.550733854287099e-2f, 2.402224203423729e-1f,
                                           6.931469775222038e-1f, 1.0f};
};
template <>
struct Exp2<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double exponent_bias = 1023.0;
  static constexpr double round_magic = 0x1.8p52;
  static constexpr double coefficients[] = {1.3691488853904124e-12, 2.5678435993488196e-11,
                                            4.44553827187081e-10,   7.054911620801121e-09,
                                            1.0178086009239696e-07, 1.3215486790144305e-06,
                                            1.5252733804059838e-05, 0.00015403530393381606,
                                            0.0013333558146428441,  0.009618129107628477,
                                            0.055504108664821576,   0.2402265069591007,
                                            0.6931471805599453,     1.0};
};

// Which x an exponential must serve. kShallow promises that no x is NaN, infinite or below min_exponent, and gives
// the same bits for less work (by the polynomial, but where x lies half-way between two integers).
enum class Depth { kAny, kShallow };

#if defined(__AVX512F__)
// 2^(k/32), less k/32 of a unit of the exponent: adding k + 32 n of those gives 2^(k/32 + n). In two registers, which
// one instruction looks up.
alignas(kVectorBytes) inline constexpr uint32_t kExp2Table[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

// A quadratic on [-1/64, 1/64] times an entry of the table: error 1.8 units of the last place, two multiplications
// less than the polynomial. p(0) = 1 here too.
template <Depth depth>
ICM_INLINE Vec<float> exp2_by_table(Vec<float> x) {
  constexpr float c1 = 0.693157315f, c2 = 0.240226492f;
  const Vec<float> least = broadcast(float(Trust<float>::min_exponent));
  const IVec<float> lost = x < least;  // not NaN
  if constexpr (depth == Depth::kAny) x = at_least(x, least);
  const Vec<float> magic = broadcast(0x1.8p18f);  // rounds to a 32nd and leaves 32 x in the lowest bits
  const Vec<float> shifted = x + magic;
  const Vec<float> f = x - (shifted - magic);
  const Vec<float> entry = (Vec<float>)_mm512_permutex2var_ps(
      (__m512)load((const float*)kExp2Table), (__m512i)shifted, (__m512)load((const float*)kExp2Table + 16));
  const Vec<float> scale = (Vec<float>)((UVec<float>)entry + ((UVec<float>)shifted << 18));
  const Vec<float> e = fma(scale, fma(broadcast(c2), f, broadcast(c1)) * f, scale);
  return depth == Depth::kAny ? select<float>(lost, Vec<float>{}, e) : e;
}
#endif

// 2^x for x <= 0 and small positive x: 0 for -inf and every x below -126.5 (float; by the table -126); NaN stays NaN;
// +inf gives NaN, which the guard of the sums treats as untrusted.
template <typename T, Depth depth = Depth::kAny>
ICM_INLINE Vec<T> exp2(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) return exp2_by_table<depth>(x);
#endif
  using E = Exp2<T>;
  constexpr int last = int(sizeof(E::coefficients) / sizeof(T)) - 1;
  // Adding this rounds to an integer and leaves integer + bias in the lowest bits: at -bias those bits
  // are 0, the bits of 0.0. The comparison lets NaN through.
  const Vec<T> magic = broadcast<T>(E::round_magic + (depth == Depth::kAny ? E::exponent_bias : T(0)));
  if constexpr (depth == Depth::kAny) x = at_least(x, broadcast<T>(-E::exponent_bias));
  const Vec<T> shifted = x + magic;
  const Vec<T> f = x - (shifted - magic);
  Vec<T> p = broadcast<T>(E::coefficients[0]);
#pragma GCC unroll 16
  for (int k = 1; k <= last; ++k) p = fma(p, f, broadcast<T>(E::coefficients[k]));
  const UVec<T> exponent = (UVec<T>)shifted << E::mantissa_bits;
  if constexpr (depth == Depth::kShallow) return (Vec<T>)((UVec<T>)p + exponent);
  return p * (Vec<T>)exponent;
}

// log2(x) for positive normal x: exponent + 2/ln2 * atanh((m-1)/(m+1)), m in [sqrt(1/2), sqrt(2)).
// Relative accuracy is kept around x = 1, where a confident loss lives. NaN stays NaN.
template <typename T>
ICM_INLINE Vec<T> log2(Vec<T> x) {
  using E = Exp2<T>;
  constexpr int terms = sizeof(T) == 4 ? 6 : 12;
  const IVec<T> sqrt_half = (IVec<T>)broadcast<T>(T(0.70710678118654752440));
  const IVec<T> biased = (IVec<T>)x - sqrt_half;
  const IVec<T> exponent = biased >> E::mantissa_bits;
  const Vec<T> m = (Vec<T>)((IVec<T>)x - (exponent << E::mantissa_bits));
  const Vec<T> z = (m - T(1)) / (m + T(1));
  const Vec<T> zz = z * z;
  Vec<T> p = broadcast<T>(T(1) / T(2 * terms - 1));
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) p = fma(p, zz, broadcast<T>(T(1) / T(2 * k + 1)));
  const Vec<T> whole = __builtin_convertvector(exponent, Vec<T>) + (x - x);
  return fma(z * p, broadcast<T>(T(2 * kLog2E)), whole);
}

// Sum over the lanes in a fixed order.
template <typename T>
ICM_INLINE T sum_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
#pragma GCC unroll 16
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  return lanes[0];
}

}  // namespace icm::ICM_ISA
