// Runs of elements in packs of 16 bytes of the wider type: one access where a pack is whole and aligned, single
// elements at the ends of a row and where its address does not allow more.
#pragma once

#include <bit>

#include "scalar_types.h"

namespace icm {

inline constexpr int kPackBytes = 16;

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T v[kSize];
};

template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <typename T, int kSize>
using Word = typename WordOf<int(sizeof(T)) * kSize>::type;

// Whether packs are aligned where one of them is at `p` (elements before it count too).
template <int kSize, typename T>
ICM_HOST_DEVICE bool has_aligned_packs(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kSize) == 0;
}

// Elements of the pack at p that exist: `count`, at least 1; the others are `missing`.
template <int kSize, typename T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* p, int count, bool aligned, T missing = T{},
                                                    int64_t stride = 1) {
  if (aligned && count == kSize)
    return std::bit_cast<Pack<T, kSize>>(__ldg(reinterpret_cast<const Word<T, kSize>*>(p)));
  Pack<T, kSize> pack;
#pragma unroll
  for (int k = 0; k < kSize; ++k) pack.v[k] = k < count ? p[k * stride] : missing;
  return pack;
}

// Written past what the second-level cache should keep: `kStream`.
template <bool kStream, typename T, int kSize>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, kSize>& pack, int count, bool aligned) {
  if (aligned && count == kSize) {
    const auto word = std::bit_cast<Word<T, kSize>>(pack);
    auto* const place = reinterpret_cast<Word<T, kSize>*>(p);
    if constexpr (kStream)
      __stcs(place, word);
    else
      *place = word;
    return;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k)
    if (k < count) p[k] = pack.v[k];
}

}  // namespace icm
