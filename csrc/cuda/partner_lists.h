// Which rows have row p as their partner, in ascending order: a gradient adds them in that order, whatever block
// computes it, without atomic operations on floating-point numbers.
#pragma once

#include "device_tensors.h"
#include "divisor.h"

namespace icm {

// `first[p]` is the first row whose partner is p, `next[k]` the one after k; -1 ends a list. A row that is its own
// partner, or has none, is in no list.
struct PartnerLists {
  int32_t *first, *next;
};

struct PartnerIndex {
  const int64_t* values;
  int64_t stride;
  int32_t rows;
  __device__ __forceinline__ int64_t of(int64_t k) const { return values[k * stride]; }
};

inline constexpr int kListThreads = 256;

template <typename Body>
__device__ __forceinline__ void for_each_row(int32_t rows, const Body& body) {
  for (int64_t k = int64_t(blockIdx.x) * kListThreads + threadIdx.x; k < rows;
       k += int64_t(gridDim.x) * kListThreads)
    body(k);
}

// Large batches first count the rows of each list, so that only what has several is searched for.
static __global__ void __launch_bounds__(kListThreads)
    clear_partners_kernel(PartnerIndex index, PartnerLists lists, int32_t* count) {
  for_each_row(index.rows, [&](int64_t k) {
    lists.first[k] = index.rows;
    count[k] = 0;
  });
}

static __global__ void __launch_bounds__(kListThreads)
    count_partners_kernel(PartnerIndex index, PartnerLists lists, int32_t* count) {
  for_each_row(index.rows, [&](int64_t k) {
    const int64_t partner = index.of(k);
    if (partner < 0 || partner >= index.rows || partner == k) return;
    atomicAdd(&count[partner], 1);
    atomicMin(&lists.first[partner], int32_t(k));
  });
}

// One warp makes the list of p: it looks through the rows, from the first of the list to the last where they are
// counted, else through all.
__device__ __forceinline__ void link_partners(const PartnerIndex& index, const PartnerLists& lists,
                                              const int32_t* count, int32_t p) {
  constexpr int kLoads = 4;
  const int lane = lane_index();
  int32_t last = -1, left = count == nullptr ? index.rows : count[p];
  int64_t k0 = 0;
  if (count != nullptr && left > 0) {
    last = lists.first[p];
    k0 = last + 1;
    --left;
  }
  for (; left > 0 && k0 < index.rows; k0 += kLoads * kWarp) {
    bool found[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t k = k0 + u * kWarp + lane;
      found[u] = k < index.rows && k != p && index.of(k) == p;
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const unsigned all = ballot(found[u]);
      if (all == 0) continue;
      const int32_t begin = int32_t(k0) + u * kWarp;
      const unsigned before = all & ((1u << lane) - 1);
      const int32_t previous = before == 0 ? last : begin + 31 - __clz(int(before));
      if (found[u]) (previous < 0 ? lists.first[p] : lists.next[previous]) = begin + lane;
      last = begin + 31 - __clz(int(all));
      left -= __popc(all);
    }
  }
  if (lane == 0) (last < 0 ? lists.first[p] : lists.next[last]) = -1;
}

static __global__ void __launch_bounds__(kListThreads)
    link_partners_kernel(PartnerIndex index, PartnerLists lists, const int32_t* count) {
  constexpr int kWarps = kListThreads / kWarp;
  for (int64_t p = int64_t(blockIdx.x) * kWarps + warp_index(); p < index.rows;
       p += int64_t(gridDim.x) * kWarps)
    link_partners(index, lists, count, int32_t(p));
}

// Rows up to which every list is searched for through all rows: that is B^2 comparisons, but one launch. Untuned.
inline constexpr int64_t kMostUncounted = 4096;

// The lists, and the memory that they are in.
class ListedPartners {
 public:
  ListedPartners(const DeviceScope& scope, const char* op, const Tensor& like, const int64_t* index,
                 int64_t stride, int64_t rows)
      : memory_(new_contiguous({rows <= kMostUncounted ? 2 : 3, rows}, ScalarType::Int, like)) {
    STD_TORCH_CHECK(rows <= kMostDividend, op, ": expected fewer than 2^31 samples on CUDA");
    int32_t* const first = data<int32_t>(memory_);
    lists_ = {first, first + rows};
    const PartnerIndex partners{index, stride, int32_t(rows)};
    const int64_t most = int64_t(scope.limits().multiprocessors) * 8;
    const auto blocks = [&](int64_t tasks) { return int(std::min(most, (rows + tasks - 1) / tasks)); };
    int32_t* count = nullptr;
    if (rows > kMostUncounted) {
      count = first + 2 * rows;
      const Launch by_row{blocks(kListThreads), kListThreads};
      scope.launch(by_row, clear_partners_kernel, partners, lists_, count);
      scope.launch(by_row, count_partners_kernel, partners, lists_, count);
    }
    scope.launch({blocks(kListThreads / kWarp), kListThreads}, link_partners_kernel, partners, lists_, count);
  }
  const PartnerLists& lists() const { return lists_; }

 private:
  Tensor memory_;
  PartnerLists lists_;
};

}  // namespace icm
