// Reductions over the threads of a team in a fixed order, so that results do not depend on which warp is first.
#pragma once

#include "device.h"

namespace icm {

struct Maximum {
  // Of a number and a NaN, the number.
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return max(a, b);
  }
};
struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// 2^bits threads: part of a warp, a warp, or the whole block.
struct ThreadTeam {
  int size, lane, index;  // lane: of the thread in its team; index: of the team in the block

  __device__ __forceinline__ explicit ThreadTeam(int bits)
      : size(1 << bits), lane(int(threadIdx.x) & (size - 1)), index(int(threadIdx.x) >> bits) {}
  __device__ __forceinline__ static ThreadTeam block() { return ThreadTeam(31 - __clz(int(blockDim.x))); }

  // Every thread of the team gets the same bits. `scratch`: a word for each warp, not used for another reduction
  // until every thread has passed a barrier.
  template <typename Operation, typename T>
  __device__ __forceinline__ T reduce(T value, T* scratch, Operation operation = {}) const {
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2)
      if (width < size) value = operation(value, shuffle_xor(value, width));
    if (size <= kWarp) return value;
    if (lane_index() == 0) scratch[warp_index()] = value;
    sync_block();
    value = scratch[0];
    for (int warp = 1; warp < warp_count(); ++warp) value = operation(value, scratch[warp]);
    return value;
  }
};

}  // namespace icm
