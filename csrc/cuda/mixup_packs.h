// One pack of a mixed sample from those of its two sources (../mixup_math.h).
#pragma once

#include "mixup_samples.h"

namespace icm {

// Floating-point samples. A source of weight 0 takes no part; alone, a sample is copied.
template <typename T, int kSize>
__device__ __forceinline__ Pack<T, kSize> mixed_pack(const Pack<T, kSize>& own, const Pack<T, kSize>& partner,
                                                     MixWeights<acc_type<T>> w, const Image& image,
                                                     const SampleBox& box, uint32_t first) {
  auto mixed = Pack<T, kSize>::of([&](int k) {
    return mix_values(w.own, own.value(k), w.partner, partner.value(k), FusedMultiplyAdd());
  });
  if (w.partner == 0) mixed = own;
  if (w.own == 0) mixed = partner;
  if (box.exists()) {
    BoxWalk walk(image, box, first);
#pragma unroll
    for (int k = 0; k < kSize; ++k, walk.advance())
      if (walk.inside()) mixed.set(k, partner.get(k));
  }
  return mixed;
}

// Pixels: bytes are finite, so that a weight of 0 leaves nothing.
template <typename out_t, int kSize>
__device__ __forceinline__ Pack<out_t, kSize> mixed_pack(const Pack<uint8_t, kSize>& own,
                                                         const Pack<uint8_t, kSize>& partner,
                                                         MixWeights<acc_type<out_t>> weights,
                                                         const Image& image, const SampleBox& box,
                                                         uint32_t first,
                                                         const PixelTable<acc_type<out_t>, kSize>& table) {
  using acc_t = acc_type<out_t>;
  const auto mix = [&](int k, MixWeights<acc_t> w, Pixel<acc_t> pixel) {
    const acc_t a = byte_value(own, k, acc_t{}), b = byte_value(partner, k, acc_t{});
    const FusedMultiplyAdd multiply_add;
    return multiply_add(mix_values(w.own, a, w.partner, b, multiply_add), pixel.scale, pixel.shift);
  };
  const auto position = table.find(first);
  if (position.left >= kSize && !box.exists()) {
    const Pixel<acc_t> pixel = table.at(position.slot);
    return Pack<out_t, kSize>::of([&](int k) { return mix(k, weights, pixel); });
  }
  Pixel<acc_t> pixels[kSize];
  table.each(position, pixels);
  MixWeights<acc_t> w[kSize];
  BoxWalk walk(image, box, first);
#pragma unroll
  for (int k = 0; k < kSize; ++k, walk.advance()) w[k] = walk.inside() ? MixWeights<acc_t>{0, 1} : weights;
  return Pack<out_t, kSize>::of([&](int k) { return mix(k, w[k], pixels[k]); });
}

}  // namespace icm
