// Runs of elements in packs of 16 bytes of the wider type: one access where a pack is whole and aligned, single
// elements at the ends of a row and where its address does not allow more.
#pragma once

#include <bit>
#include <cstring>

#include "../icm_math.h"
#include "scalar_types.h"

namespace icm {

inline constexpr int kPackBytes = 16;

template <int kBytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = unsigned char;
};
template <>
struct UnsignedOf<2> {
  using type = unsigned short;
};
template <>
struct UnsignedOf<4> {
  using type = unsigned;
};
template <>
struct UnsignedOf<8> {
  using type = uint2;
};
template <>
struct UnsignedOf<16> {
  using type = uint4;
};

template <typename T>
__device__ __forceinline__ T rounded(acc_type<T> x) {
  T result;
  from_acc(x, &result);
  return result;
}
// The pairs of CUDA are no trivial types.
template <typename Pair>
__device__ __forceinline__ uint32_t bits_of(const Pair& pair) {
  static_assert(sizeof(pair) == 4);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
// Two at once: one instruction, where two single ones would share the slow pipe of the exponentials.
__device__ __forceinline__ uint32_t rounded_pair(float low, float high, bfloat16) {
  const auto both = __floats2bfloat162_rn(low, high);
  return bits_of(both);
}
__device__ __forceinline__ uint32_t rounded_pair(float low, float high, float16) {
  const auto both = __floats2half2_rn(low, high);
  return bits_of(both);
}

// Kept as words: of elements in registers of their own, 16-bit ones would take twice the registers, bytes four times.
template <typename T, int kSize>
struct Pack {
  static constexpr int kBytes = int(sizeof(T)) * kSize;
  using Whole = typename UnsignedOf<kBytes>::type;
  using Bits = typename UnsignedOf<int(sizeof(T))>::type;
  uint32_t words[(kBytes + 3) / 4];

  // Of value(k), rounded to T; called in order.
  template <typename Value>
  __device__ __forceinline__ static Pack of(const Value& value) {
    Pack pack = {};
#pragma unroll
    for (int k = 0; k < kSize; k += sizeof(T) == 2 ? 2 : 1) {
      const acc_type<T> first = value(k);
      if constexpr (sizeof(T) == 2)
        pack.words[k / 2] = rounded_pair(first, value(k + 1), T{});
      else
        pack.set(k, rounded<T>(first));
    }
    return pack;
  }
  __device__ __forceinline__ T get(int k) const {
    if constexpr (sizeof(T) == 8)
      return std::bit_cast<T>(uint2{words[2 * k], words[2 * k + 1]});
    else if constexpr (sizeof(T) == 4)
      return std::bit_cast<T>(words[k]);
    else {
      constexpr int kEach = 4 / int(sizeof(T));
      return std::bit_cast<T>(Bits(words[k / kEach] >> (32 / kEach * (k % kEach))));
    }
  }
  // As get, in the type of sums.
  __device__ __forceinline__ acc_type<T> value(int k) const {
    if constexpr (std::is_same_v<T, bfloat16>)
      return std::bit_cast<float>(k % 2 == 0 ? words[k / 2] << 16 : words[k / 2] & 0xffff0000u);
    else
      return to_acc(get(k));
  }
  __device__ __forceinline__ void set(int k, T value) {
    if constexpr (sizeof(T) == 8) {
      const uint2 both = std::bit_cast<uint2>(value);
      words[2 * k] = both.x;
      words[2 * k + 1] = both.y;
    } else if constexpr (sizeof(T) == 4) {
      words[k] = std::bit_cast<uint32_t>(value);
    } else {
      constexpr int kEach = 4 / int(sizeof(T)), kBits = 32 / kEach;
      const int shift = kBits * (k % kEach);
      const uint32_t others = words[k / kEach] & ~(((1u << kBits) - 1) << shift);
      words[k / kEach] = others | uint32_t(std::bit_cast<Bits>(value)) << shift;
    }
  }
};

// Whether packs are aligned where one of them is at `p`.
template <int kSize, typename T>
ICM_HOST_DEVICE bool has_aligned_packs(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kSize) == 0;
}

// The pack at p, of whose elements `count`, at least 1, exist; the others are `missing`.
template <int kSize, typename T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* p, int count, bool aligned, T missing = T{}) {
  using Whole = typename Pack<T, kSize>::Whole;
  Pack<T, kSize> pack = {};
  if (aligned && count == kSize) {
    const Whole whole = __ldg(reinterpret_cast<const Whole*>(p));
    if constexpr (sizeof(Whole) < 4)
      pack.words[0] = whole;
    else
      pack = std::bit_cast<Pack<T, kSize>>(whole);
    return pack;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) pack.set(k, k < count ? p[k] : missing);
  return pack;
}

// kStream: past what the second-level cache should keep.
template <bool kStream, typename T, int kSize>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, kSize>& pack, int count, bool aligned) {
  using Whole = typename Pack<T, kSize>::Whole;
  if (aligned && count == kSize) {
    static_assert(sizeof(Whole) == sizeof(pack), "results are packs of 16 bytes");
    if constexpr (kStream)
      __stcs(reinterpret_cast<Whole*>(p), std::bit_cast<Whole>(pack));
    else
      *reinterpret_cast<Whole*>(p) = std::bit_cast<Whole>(pack);
    return;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k)
    if (k < count) p[k] = pack.get(k);
}

}  // namespace icm
