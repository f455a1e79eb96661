// Turns a target into columns, used classes and, for the gradient, each class's columns in order: functions of one
// block, so that a small batch does it inside its only launch and a large one in a block beside the sums.
#pragma once

#include "problem.h"

namespace icm {

// Exclusive prefix sum over the block; *total gets the sum. `scratch`: a word for each warp and one more.
__device__ __forceinline__ int32_t block_prefix(int32_t value, int32_t* scratch, int32_t* total) {
  const int lane = lane_index(), warp = warp_index(), warps = warp_count();
  int32_t inclusive = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = shuffle(inclusive, lane >= step ? lane - step : lane);
    if (lane >= step) inclusive += other;
  }
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  sync_block();
  if (threadIdx.x == 0) {
    int32_t sum = 0;
    for (int w = 0; w < warps; ++w) {
      const int32_t own = scratch[w];
      scratch[w] = sum;
      sum += own;
    }
    scratch[warps] = sum;
  }
  sync_block();
  const int32_t result = scratch[warp] + inclusive - value;
  *total = scratch[warps];
  sync_warp();  // a warp's word is its own; thread 0 writes the others only behind the next barrier
  return result;
}

inline constexpr int kPrefixScratch = 33;
// Columns that a thread reads before it writes: one block, alone on the device, waits for memory most of the time.
inline constexpr int kReadAhead = 4;

// What a plan does not use is 0, so that equal targets have equal plans.
__device__ __forceinline__ void clear(int32_t* begin, const int32_t* end) {
  for (int32_t* word = begin + threadIdx.x; word < end; word += blockDim.x) *word = 0;
}

// Fills columns, present and the header. `slot_of`: a word for each class.
template <typename acc_t>
__device__ void plan_columns(const MixedLabels& labels, int64_t classes, const Plan<acc_t>& plan,
                             int32_t* slot_of, int32_t* scratch) {
  const int64_t count = labels.count, threads = blockDim.x, self = threadIdx.x;
  for (int64_t c = self; c < classes; c += threads) slot_of[c] = 0;
  sync_block();
  bool bad = false;
  for (int64_t first = self; first < count; first += kReadAhead * threads) {
    MixedClass<acc_t> batch[kReadAhead];
#pragma unroll
    for (int k = 0; k < kReadAhead; ++k)
      if (first + k * threads < count) batch[k] = mixed_class<acc_t>(labels, first + k * threads, classes);
#pragma unroll
    for (int k = 0; k < kReadAhead; ++k) {
      const int64_t j = first + k * threads;
      if (j >= count) continue;
      const MixedClass<acc_t>& mixed = batch[k];
      bad |= !mixed.valid;
      plan.columns[j] = {int32_t(mixed.a), int32_t(mixed.b), mixed.w_a, mixed.w_b};
      slot_of[mixed.a] = 1;
      slot_of[mixed.b] = 1;
    }
  }
  const bool invalid = any_in_block(bad);
  // A run of classes for each thread: a million classes in some sixty turns.
  constexpr int64_t run = 16;
  int32_t used = 0;
  for (int64_t begin = 0; begin < classes; begin += run * threads) {
    const int64_t first = begin + run * self, last = first + run < classes ? first + run : classes;
    int32_t mine = 0, total;
    for (int64_t c = first; c < last; ++c) mine += slot_of[c];
    int32_t slot = used + block_prefix(mine, scratch, &total);
    for (int64_t c = first; c < last; ++c)
      if (slot_of[c] != 0) {
        slot_of[c] = slot;
        plan.present[slot++] = int32_t(c);
      }
    used += total;
  }
  sync_block();
  for (int64_t first = self; first < column_blocks(count) * kWarp; first += kReadAhead * threads) {
    Column<acc_t> batch[kReadAhead];
#pragma unroll
    for (int k = 0; k < kReadAhead; ++k) {
      const int64_t j = first + k * threads;
      batch[k] = {used + kPaddingSlot, used + kZeroSlot, acc_t(1), acc_t(0)};
      if (j < count) batch[k] = plan.columns[j];
    }
#pragma unroll
    for (int k = 0; k < kReadAhead; ++k) {
      if (first + k * threads >= count) continue;
      batch[k].slot_a = slot_of[batch[k].slot_a];
      batch[k].slot_b = batch[k].w_b == acc_t(0) ? used + kZeroSlot : slot_of[batch[k].slot_b];
    }
#pragma unroll
    for (int k = 0; k < kReadAhead; ++k)
      if (first + k * threads < column_blocks(count) * kWarp) plan.columns[first + k * threads] = batch[k];
  }
  clear(plan.header + kUsedClasses + 1, plan.header + kHeaderWords);
  clear(plan.present + used, plan.present + (most_slots(count, classes) + 3) / 4 * 4);  // take() rounds up
  if (self == 0) {
    plan.header[kIsInvalid] = invalid;
    plan.header[kUsedClasses] = used;
  }
  sync_block();
}

// Lists each class's columns: a counting sort, stable because each warp counts and places a range of its own, in order.
// `histogram`: two words for each used class and each of `counters` warps, at most as many as the block has.
template <typename acc_t>
__device__ void plan_lists(const Plan<acc_t>& plan, int64_t count, int32_t used, int32_t* histogram,
                           int counters, int32_t* scratch) {
  const int64_t threads = blockDim.x, self = threadIdx.x;
  const int warp = warp_index(), lane = lane_index();
  const int64_t range = ((2 * count + counters - 1) / counters + kWarp - 1) / kWarp * kWarp;
  const int32_t keys = 2 * used;
  // Slot and role of entry k, of role b from `count` on; or a negative number that no other lane has.
  const auto key_of = [&](int64_t k) {
    if (k >= 2 * count || k >= (warp + 1) * range) return int32_t(-1 - lane);
    const Column<acc_t>& column = plan.columns[k < count ? k : k - count];
    if (k >= count && column.w_b == acc_t(0)) return int32_t(-1 - lane);
    return k < count ? 2 * column.slot_a : 2 * column.slot_b + 1;
  };
  int32_t* own = histogram + int64_t(warp) * keys;

  for (int64_t k = self; k < int64_t(counters) * keys; k += threads) histogram[k] = 0;
  sync_block();
  if (warp < counters)
    for (int64_t k = warp * range + lane; k < (warp + 1) * range; k += kWarp) {
      const int32_t key = key_of(k);
      if (key >= 0) atomicAdd(own + key, 1);
    }
  sync_block();
  int32_t before = 0;
  for (int32_t begin = 0; begin < keys; begin += int32_t(threads)) {
    const int32_t key = begin + int32_t(self);
    int32_t sum = 0, total;
    if (key < keys)
      for (int w = 0; w < counters; ++w) {
        const int32_t here = histogram[int64_t(w) * keys + key];
        histogram[int64_t(w) * keys + key] = sum;
        sum += here;
      }
    const int32_t first = before + block_prefix(sum, scratch, &total);
    if (key < keys) plan.first[key] = first;
    before += total;
  }
  if (self == 0) plan.first[keys] = before;
  clear(plan.first + keys + 1, plan.owners);
  clear(plan.owners + before, reinterpret_cast<int32_t*>(plan.entries));
  clear(reinterpret_cast<int32_t*>(plan.entries + before), plan.end);
  sync_block();
  if (warp < counters)
    for (int64_t begin = warp * range; begin < (warp + 1) * range; begin += kWarp) {
      const int64_t k = begin + lane;
      const int32_t key = key_of(k);
      const unsigned same = match_any(key);
      const int earlier = __popc(same & ((1u << lane) - 1u));
      if (key >= 0) {
        const bool is_b = k >= count;
        const int64_t j = is_b ? k - count : k;
        const Column<acc_t> column = plan.columns[j];
        const int32_t at = plan.first[key] + own[key] + earlier;
        plan.owners[at] = int32_t(j);
        plan.entries[at] = {is_b ? column.slot_a : column.slot_b, column.w_a};
      }
      sync_warp();
      if (key >= 0 && earlier == 0) own[key] += __popc(same);
      sync_warp();
    }
  sync_block();
}

}  // namespace icm
