// The formulae of mixing, written once for host and device. lam weighs the sample ITSELF.
//
//   out_i = w_own x_i + w_partner x_index(i)         w_own = lam_i, w_partner = 1 - lam_i     (spec 3, Mixup)
//
// Pixels of a box come from the partner (CutMix): there w_own = 0 and w_partner = 1. A weight of exactly 0 means
// that the source is not read, so its NaN does not show; a weight of exactly 1 alone is a copy.
#pragma once

#include <cstdint>

#include "icm_math.h"

namespace icm {

template <typename T>
struct MixWeights {
  T own, partner;
};

// A sample that is its own partner is copied: lam*x + (1-lam)*x is not always x. A bad lam or index is NaN.
template <typename T>
ICM_HOST_DEVICE MixWeights<T> mix_weights(T lam, int64_t sample, int64_t partner, int64_t batch) {
  if (!lam_is_valid(lam) || partner < 0 || partner >= batch) {
    const T nan = T(__builtin_nan(""));
    return {nan, nan};
  }
  if (partner == sample) return {T(1), T(0)};
  return {lam, partner_weight(lam)};
}

template <typename T>
ICM_HOST_DEVICE bool is_bad(MixWeights<T> w) {
  return w.own != w.own;
}

template <typename V, typename Fma>
ICM_HOST_DEVICE V mix_values(V w_own, V own, V w_partner, V partner, Fma fma) {
  return fma(w_own, own, w_partner * partner);
}

// uint8 pixels: (mix / 255 - mean) / std as one multiply-add. In double, rounded once by the caller.
ICM_HOST_DEVICE double pixel_scale(double std) { return 1.0 / (255.0 * std); }
ICM_HOST_DEVICE double pixel_shift(double mean, double std) { return -mean / std; }

// y1, y2, x1, x2 half-open, in pixels.
struct Box {
  int64_t y1, y2, x1, x2;
};

ICM_HOST_DEVICE int64_t clamp(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

// How the elements of one sample lie in memory, whatever the order of its dimensions: planes of `rows` rows of
// `row` elements, each pixel a run of `pixel` elements; the channel of an element is
// (element / channel_stride) % channels.
struct SampleLayout {
  int64_t size;  // elements of a sample
  int64_t rows, row, pixel;
  int64_t channels, channel_stride;
};

// A box in elements; all zero when it holds no pixel.
ICM_HOST_DEVICE Box box_in_elements(const int64_t* box, int64_t stride, const SampleLayout& layout) {
  const int64_t width = layout.row / layout.pixel;
  const Box b{clamp(box[0], layout.rows), clamp(box[stride], layout.rows),
              clamp(box[2 * stride], width) * layout.pixel, clamp(box[3 * stride], width) * layout.pixel};
  return b.y1 < b.y2 && b.x1 < b.x2 ? b : Box{0, 0, 0, 0};
}

}  // namespace icm
