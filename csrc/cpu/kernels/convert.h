// Loading and storing kLanes<acc> elements of the logits' type: bfloat16 and float16 are widened and
// rounded (to nearest, ties to even) in registers.
#pragma once

#include "scalar_types.h"
#include "simd.h"

namespace icm::ICM_ISA {

typedef uint16_t u16vec __attribute__((vector_size(kVectorBytes / 2)));

ICM_INLINE float to_acc(float x) { return x; }
ICM_INLINE double to_acc(double x) { return x; }
ICM_INLINE float to_acc(bfloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
ICM_INLINE float to_acc(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // inf and NaN
    return __builtin_bit_cast(float, sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Half's exponent bias is 15, float's 127: scaling by 2^112 renormalises denormals too.
  const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, scaled));
}

ICM_INLINE void from_acc(float x, float* out) { *out = x; }
ICM_INLINE void from_acc(double x, double* out) { *out = x; }
ICM_INLINE void from_acc(float x, bfloat16* out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  out->bits = x != x ? 0x7fc0u : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
ICM_INLINE void from_acc(float x, float16* out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = uint16_t(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    out->bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // denormal: adding 1/2 aligns the last bit of a half with a float's
    const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
    out->bits = uint16_t(sign | (__builtin_bit_cast(uint32_t, aligned) - 0x3f000000u));
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    out->bits = uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
}

ICM_INLINE Vec<float> load_acc(const float* p) { return load(p); }
ICM_INLINE Vec<double> load_acc(const double* p) { return load(p); }
ICM_INLINE Vec<float> load_acc(const bfloat16* p) {
  u16vec bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return (Vec<float>)(__builtin_convertvector(bits, UVec<float>) << 16);
}
ICM_INLINE Vec<float> load_acc(const float16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  float lanes[kLanes<float>];
  for (int k = 0; k < kLanes<float>; ++k) lanes[k] = to_acc(p[k]);
  return load(lanes);
#endif
}

ICM_INLINE void store_acc(float* p, Vec<float> v) { store(p, v); }
ICM_INLINE void store_acc(double* p, Vec<double> v) { store(p, v); }
ICM_INLINE void store_acc(bfloat16* p, Vec<float> v) {
  const UVec<float> bits = (UVec<float>)v;
  const UVec<float> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec<float> nan = UVec<float>{} + 0x7fc0u;
  const u16vec narrow = __builtin_convertvector(v != v ? nan : rounded, u16vec);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}
ICM_INLINE void store_acc(float16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  float lanes[kLanes<float>];
  store(lanes, v);
  for (int k = 0; k < kLanes<float>; ++k) from_acc(lanes[k], p + k);
#endif
}

// Set in lanes [first, last).
template <typename acc_t>
ICM_INLINE IVec<acc_t> lanes_between(int first, int last) {
  IVec<acc_t> lane = {};
#pragma GCC unroll 16
  for (int k = 0; k < kLanes<acc_t>; ++k) lane[k] = k;
  return (lane >= first) & (lane < last);
}

// The first `count` lanes, the others 0.
template <typename scalar_t>
ICM_INLINE Vec<acc_type<scalar_t>> load_first(const scalar_t* x, int count) {
  using acc_t = acc_type<scalar_t>;
  acc_t lanes[kLanes<acc_t>] = {};
  for (int k = 0; k < count; ++k) lanes[k] = to_acc(x[k]);
  return load(lanes);
}
// Of a few classes this is all of a row, and one by one it took as long as a hundred classes do.
#if defined(__AVX2__)
ICM_INLINE Vec<float> load_first(const float* x, int count) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1u), x);
#else
  return (Vec<float>)_mm256_maskload_ps(x, (__m256i)lanes_between<float>(0, count));
#endif
}
#endif

// Stores the first `count` lanes.
template <typename scalar_t>
ICM_INLINE void store_first(scalar_t* x, int count, Vec<acc_type<scalar_t>> v) {
  using acc_t = acc_type<scalar_t>;
  acc_t lanes[kLanes<acc_t>];
  store(lanes, v);
  for (int k = 0; k < count; ++k) from_acc(lanes[k], x + k);
}
#if defined(__AVX2__)
ICM_INLINE void store_first(float* x, int count, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(x, __mmask16((1u << count) - 1u), (__m512)v);
#else
  _mm256_maskstore_ps(x, (__m256i)lanes_between<float>(0, count), (__m256)v);
#endif
}
#endif

}  // namespace icm::ICM_ISA
