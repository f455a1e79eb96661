// Transposition of squares of vectors in registers.
#pragma once

#include "simd.h"

namespace icm::ICM_ISA {

// Interleaving of the lower and of the upper elements of a and b, within each 128-bit lane.
ICM_INLINE void unpack(Vec<float> a, Vec<float> b, Vec<float>& low, Vec<float>& high) {
#if defined(__AVX512F__)
  low = (Vec<float>)_mm512_unpacklo_ps((__m512)a, (__m512)b);
  high = (Vec<float>)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  low = (Vec<float>)_mm256_unpacklo_ps((__m256)a, (__m256)b);
  high = (Vec<float>)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#else
  low = Vec<float>{a[0], b[0], a[1], b[1]};
  high = Vec<float>{a[2], b[2], a[3], b[3]};
#endif
}

ICM_INLINE void unpack(Vec<double> a, Vec<double> b, Vec<double>& low, Vec<double>& high) {
#if defined(__AVX512F__)
  low = (Vec<double>)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
  high = (Vec<double>)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  low = (Vec<double>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
  high = (Vec<double>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#else
  low = Vec<double>{a[0], b[0]};
  high = Vec<double>{a[1], b[1]};
#endif
}

// The 128-bit lanes of a and b: the even ones of both, and the odd ones.
template <typename T>
ICM_INLINE void split_lanes(Vec<T> a, Vec<T> b, Vec<T>& even, Vec<T>& odd) {
#if defined(__AVX512F__)
  even = (Vec<T>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88);
  odd = (Vec<T>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd);
#elif defined(__AVX2__)
  even = (Vec<T>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20);
  odd = (Vec<T>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
#endif
}

// Transposes the squares of 4 x 4 floats (2 x 2 doubles) inside the lanes of consecutive vectors.
ICM_INLINE void transpose_in_lanes(Vec<float>* v) {
  Vec<float> low01, high01, low23, high23;
  unpack(v[0], v[1], low01, high01);
  unpack(v[2], v[3], low23, high23);
  // By value: a reference to a vector of the other type may not be written through (GCC then gave wrong results).
  Vec<double> first, second, third, fourth;
  unpack((Vec<double>)low01, (Vec<double>)low23, first, second);
  unpack((Vec<double>)high01, (Vec<double>)high23, third, fourth);
  v[0] = (Vec<float>)first;
  v[1] = (Vec<float>)second;
  v[2] = (Vec<float>)third;
  v[3] = (Vec<float>)fourth;
}
ICM_INLINE void transpose_in_lanes(Vec<double>* v) {
  const Vec<double> a = v[0], b = v[1];
  unpack(a, b, v[0], v[1]);
}

// Transposes a square of kLanes x kLanes in registers: first inside the 128-bit lanes, then the lanes.
template <typename T>
ICM_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int side = 16 / int(sizeof(T)), lanes = kVectorBytes / 16;
#pragma GCC unroll 4
  for (int g = 0; g < lanes; ++g) transpose_in_lanes(v + side * g);
#pragma GCC unroll 4
  for (int c = 0; c < side; ++c) {
    if constexpr (lanes == 2) {
      split_lanes<T>(v[c], v[side + c], v[c], v[side + c]);
    } else if constexpr (lanes == 4) {
      Vec<T> even01, odd01, even23, odd23;
      split_lanes<T>(v[c], v[side + c], even01, odd01);
      split_lanes<T>(v[2 * side + c], v[3 * side + c], even23, odd23);
      split_lanes<T>(even01, even23, v[c], v[2 * side + c]);
      split_lanes<T>(odd01, odd23, v[side + c], v[3 * side + c]);
    }
  }
}

}  // namespace icm::ICM_ISA
