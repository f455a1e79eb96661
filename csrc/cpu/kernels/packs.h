// Packs: a vector of memory's width in registers, one vector of floats or doubles or two of widened 16-bit numbers.
// Sums of packs keep every element's bits: they are those of the element alone.
#pragma once

#include "convert.h"

namespace icm::ICM_ISA {

template <typename scalar_t>
inline constexpr int kPackElements = kVectorBytes / int(sizeof(scalar_t));

template <typename scalar_t>
struct Pack {
  static constexpr int kVectors = kPackElements<scalar_t> / kLanes<acc_type<scalar_t>>;
  Vec<acc_type<scalar_t>> v[kVectors];
};

template <typename scalar_t>
ICM_INLINE Pack<scalar_t> load_pack(const scalar_t* p) {
  Pack<scalar_t> pack;
  for (int k = 0; k < Pack<scalar_t>::kVectors; ++k) pack.v[k] = load_acc(p + k * kLanes<acc_type<scalar_t>>);
  return pack;
}

template <typename scalar_t>
ICM_INLINE u16vec narrowed(Vec<float> v) {
  scalar_t elements[kLanes<float>];
  u16vec bits;
  store_acc(elements, v);
  __builtin_memcpy(&bits, elements, sizeof(bits));
  return bits;
}
ICM_INLINE Vec<float> joined(u16vec first, u16vec second) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)first), (__m256i)second, 1);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)first), (__m128i)second, 1);
#else
  const u16vec both[2] = {first, second};
  return __builtin_bit_cast(Vec<float>, both);
#endif
}

// The elements of a pack in order, as bits.
template <typename scalar_t>
ICM_INLINE Vec<float> bits_in_order(Pack<scalar_t> pack) {
  if constexpr (Pack<scalar_t>::kVectors == 1)
    return (Vec<float>)pack.v[0];
  else
    return joined(narrowed<scalar_t>(pack.v[0]), narrowed<scalar_t>(pack.v[1]));
}

// Of a pack as load_pack made it.
template <typename scalar_t>
ICM_INLINE Vec<float> pack_bits(Pack<scalar_t> pack) {
  return bits_in_order(pack);
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
// Even elements and odd ones: a pair of bfloat16 is a float's two halves, so nothing crosses lanes.
ICM_INLINE Pack<bfloat16> load_pack(const bfloat16* p) {
  UVec<float> pairs;
  __builtin_memcpy(&pairs, p, sizeof(pairs));
  return {{(Vec<float>)(pairs << 16), (Vec<float>)(pairs & 0xffff0000u)}};
}
ICM_INLINE Vec<float> pack_bits(Pack<bfloat16> pack) {
  const auto rounded = [](Vec<float> v) ICM_LAMBDA_INLINE {  // as store_acc; in the upper half
    const UVec<float> bits = (UVec<float>)v;
    const UVec<float> nan = UVec<float>{} + 0x7fc00000u;
    return v != v ? nan : bits + 0x7fffu + ((bits >> 16) & 1u);
  };
  return (Vec<float>)((rounded(pack.v[0]) >> 16) | (rounded(pack.v[1]) & 0xffff0000u));
}
#endif

// Writes past the caches, to an address of whole vectors: a result larger than they are would only displace what is
// still needed, and a cached store first reads the line that it is about to overwrite.
ICM_INLINE void stream_bits(void* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  __builtin_memcpy(p, &v, sizeof(v));
#endif
}

}  // namespace icm::ICM_ISA
