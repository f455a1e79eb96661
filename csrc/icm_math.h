// The formulae of the Infinite Class Mixup loss, written once for host and device.
//
// Numbers in parentheses are those of icm_fast/reference/icm_loss.py. Everything here is in the
// base-2 domain: scores carry a factor log2(e), so that one 2^x serves both axes.
//
//   T[i,c] = (S[i,c] - M_i) * sigma          sigma = |scale| * log2(e); M_i: the largest finite used
//                                            logit of image i. Subtract FIRST: then T <= 0 exactly.
//   x_ij   = w_a * T[i,a_j] + w_b * T[i,b_j]                                               (eq. 3)
//   e_ij   = 2^x_ij                          row sum r_i = sum_j e_ij                      (eq. 5)
//   w_i    = 2^((M_i - M) * sigma)           column sum acc_j = sum_i w_i e_ij             (eq. 7)
//
// The template parameter V is a scalar or a vector of scalars.
#pragma once

#if defined(__CUDACC__)
#define ICM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ICM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace icm {

inline constexpr double kLog2E = 1.44269504088896340735992468100189214;
inline constexpr double kLn2 = 0.693147180559945309417232121458176568;

// Score of the mixed class (w_a on class a, w_b on class b), eq. 3. Every pass must form it by this
// expression: the repair pass subtracts maxima of x from x and relies on equal bits.
template <typename V, typename Fma>
ICM_HOST_DEVICE V mixed_score(V w_a, V t_a, V w_b, V t_b, Fma fma) {
  return fma(w_a, t_a, w_b * t_b);
}

// The weight of the partner class, formed in the accumulation type.
template <typename T>
ICM_HOST_DEVICE T partner_weight(T lam) {
  return T(1) - lam;
}

template <typename T>
ICM_HOST_DEVICE bool lam_is_valid(T lam) {
  return lam >= T(0) && lam <= T(1);  // false for NaN
}

// Row offsets may exceed the running offset of a column sum by this many powers of two before the
// sum is rescaled; 2^8 is far from overflow and makes rescaling rare.
inline constexpr int kOffsetSlack = 8;

// A sum of `terms` exponentials is trusted when at least this: every term below 2^min_exponent was
// flushed to zero, at most 2^kOffsetSlack of it after weighting, and what all of them together lost is
// then under 2^-24 (float) or 2^-53 (double) of the sum.
template <typename T>
struct Trust;
template <>
struct Trust<float> {
  static constexpr int min_exponent = -126;
  static constexpr float least(double terms) { return float(terms * 0x1p-94); }
};
template <>
struct Trust<double> {
  static constexpr int min_exponent = -1022;
  static constexpr double least(double terms) { return terms * 0x1p-961; }
};

template <typename T>
ICM_HOST_DEVICE bool sum_is_trusted(T sum, double terms) {
  return sum >= Trust<T>::least(terms) && sum < T(__builtin_huge_val());  // false for NaN
}

}  // namespace icm
