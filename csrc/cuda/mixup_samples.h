// Walking along the elements of a sample: which are inside a box, and which channel's scale and shift they take. A
// division for each pack, none for each element.
#pragma once

#include <bit>
#include <limits>

#include "../mixup_tensors.h"
#include "divisor.h"
#include "packs.h"

namespace icm {

template <typename T>
struct Samples {
  T* first;
  int64_t stride;
  __device__ __forceinline__ T* operator[](int64_t i) const { return first + i * stride; }
};

struct FusedMultiplyAdd {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b, T c) const {
    return fused_multiply_add(a, b, c);
  }
};

// The box of a sample in elements, and the image that it lies in.
struct SampleBox {
  uint32_t y, x, height, width;  // height 0: no box
  __device__ __forceinline__ explicit SampleBox(const Box& box)
      : y(uint32_t(box.y1)),
        x(uint32_t(box.x1)),
        height(uint32_t(box.y2 - box.y1)),
        width(uint32_t(box.x2 - box.x1)) {}
  __device__ __forceinline__ bool exists() const { return height != 0; }
};

struct Image {
  Divisor rows, row;  // elements of a row
};

class BoxWalk {
 public:
  __device__ __forceinline__ BoxWalk(const Image& image, const SampleBox& box, uint32_t element)
      : image_(image), box_(box) {
    const uint32_t line = image.row.quotient(element);
    x_ = element - line * image.row.divisor;
    y_ = image.rows.remainder(line);
  }
  __device__ __forceinline__ bool inside() const {
    return y_ - box_.y < box_.height && x_ - box_.x < box_.width;
  }
  __device__ __forceinline__ void advance() {
    if (++x_ != image_.row.divisor) return;
    x_ = 0;
    if (++y_ == image_.rows.divisor) y_ = 0;
  }

 private:
  const Image& image_;
  const SampleBox& box_;
  uint32_t x_, y_;
};

// Scale and shift of a channel of uint8 pixels.
template <typename acc_t>
struct alignas(2 * sizeof(acc_t)) Pixel {
  acc_t scale, shift;
};

struct Pixels {
  FloatVector mean, std;
  Divisor channels, channel_stride;
};

// A byte as a number, without the slow conversion of integers: as the last bits of 2^23 + byte, which is exact.
template <int kSize>
__device__ __forceinline__ float byte_value(const Pack<uint8_t, kSize>& pack, int k, float) {
  return std::bit_cast<float>(__byte_perm(pack.words[k / 4], 0x4b000000u, 0x7440u + unsigned(k % 4))) -
         0x1p23f;
}
template <int kSize>
__device__ __forceinline__ double byte_value(const Pack<uint8_t, kSize>& pack, int k, double) {
  return double(pack.get(k));
}

// Of the channels that a block's chunk touches, in the order in which it meets them, in shared memory. Followed by
// those of one more pack, so that what begins in the table also ends in it.
template <typename acc_t, int kSize>
class PixelTable {
 public:
  // What a block may take, so that it does not decide how many blocks run: elements of a chunk.
  static int64_t most_elements(const SampleLayout& layout) {
    constexpr int64_t most = (32 << 10) / int64_t(sizeof(Pixel<acc_t>)) - 2 * kSize;
    return layout.channels <= most ? std::numeric_limits<int64_t>::max() : most * layout.channel_stride;
  }
  static size_t bytes(const SampleLayout& layout, int64_t elements) {
    return sizeof(Pixel<acc_t>) *
           size_t(std::min(layout.channels, elements / layout.channel_stride + 2) + kSize);
  }
  // [first, past): what the block reads of a sample. Every thread of the block calls this, and a barrier after it.
  __device__ __forceinline__ PixelTable(const Pixels& pixels, uint32_t first, uint32_t past)
      : pixels_(pixels), first_line_(pixels.channel_stride.quotient(first)) {
    Pixel<acc_t>* const entries = static_cast<Pixel<acc_t>*>(shared_memory());
    const uint32_t lines = pixels.channel_stride.quotient(past - 1) - first_line_ + 1;
    const uint32_t count = (lines < pixels.channels.divisor ? lines : pixels.channels.divisor) + kSize;
    for (uint32_t slot = threadIdx.x; slot < count; slot += blockDim.x) {
      const uint32_t channel = pixels.channels.remainder(first_line_ + slot);
      const double mean = pixels.mean.at<double>(channel), std = pixels.std.at<double>(channel);
      entries[slot] = {acc_t(pixel_scale(std)), acc_t(pixel_shift(mean, std))};
    }
  }

  // Where an element is: its entry, and how many elements up to the next one's.
  struct Position {
    uint32_t slot, left;
  };
  __device__ __forceinline__ Position find(uint32_t element) const {
    const uint32_t line = pixels_.channel_stride.quotient(element);
    return {pixels_.channels.remainder(line - first_line_),
            (line + 1) * pixels_.channel_stride.divisor - element};
  }
  __device__ __forceinline__ Pixel<acc_t> at(uint32_t slot) const {
    return static_cast<const Pixel<acc_t>*>(shared_memory())[slot];
  }
  // Those of a pack's elements.
  __device__ __forceinline__ void each(Position position, Pixel<acc_t> (&pixels)[kSize]) const {
    const uint32_t stride = pixels_.channel_stride.divisor;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      pixels[k] = at(position.slot);
      if (--position.left != 0) continue;
      position.left = stride;
      ++position.slot;
    }
  }

 private:
  const Pixels& pixels_;
  uint32_t first_line_;
};

}  // namespace icm
