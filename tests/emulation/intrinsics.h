// Device functions of CUDA that the kernels may use. No atomic addition of floats: results would depend on the order.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>

#include "scheduler.h"

inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }

// Four of the eight bytes of high:low, chosen by the lowest three bits of each digit of the selector.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int k = 0; k < 4; ++k) result |= unsigned(bytes >> (selector >> 4 * k & 7) * 8 & 255) << 8 * k;
  return result;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline int __clzll(long long bits) { return std::countl_zero((unsigned long long)(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

template <std::integral A, std::integral B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <std::integral A, std::integral B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}
// As fminf: of a number and a NaN, the number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

template <typename T>
concept AtomicInteger =
    std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;

// Threads change places between an atomic operation and what comes before it.
template <AtomicInteger T, typename Change>
T icm_simt_atomic(T* place, const Change& change) {
  icm::simt::maybe_yield();
  const T old = *place;
  *place = change(old);
  return old;
}
template <AtomicInteger T>
T atomicAdd(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) {  // wraps, as on the device
    return T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value));
  });
}
template <AtomicInteger T>
T atomicOr(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) { return T(old | value); });
}
template <AtomicInteger T>
T atomicAnd(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) { return T(old & value); });
}
template <AtomicInteger T>
T atomicMax(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) { return old < value ? value : old; });
}
template <AtomicInteger T>
T atomicMin(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) { return value < old ? value : old; });
}
template <AtomicInteger T>
T atomicExch(T* place, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T) { return value; });
}
template <AtomicInteger T>
T atomicCAS(T* place, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return icm_simt_atomic(place, [&](T old) { return old == expected ? value : old; });
}

// Memory has one order here: fences only give others the chance to go on.
inline void __threadfence() { icm::simt::maybe_yield(); }
inline void __threadfence_block() { icm::simt::maybe_yield(); }
inline void __trap() { icm::simt::trap("__trap()"); }
