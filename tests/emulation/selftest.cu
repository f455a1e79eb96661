// Kernels that show what the emulation does: right ones, and ones with a planted mistake that it must report.
// Called from tests/test_emulation.py.
#include "../../csrc/cuda/device.h"

namespace icm {
namespace {

// As MISTAKES in selftest.py.
enum Mistake {
  kNoMistake,
  kNoBarrier,
  kNoSecondBarrier,
  kSharedOverrun,
  kGlobalOverrun,
  kDivergent,
  kEarlyExit,
  kWarpSplit,
  kBadRank,
  kBadPointer
};

__device__ float warp_sum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The block's sum, in every thread. Shared memory for one value of each warp.
__device__ float block_sum(float value, float* shared, Mistake mistake) {
  value = warp_sum(value);
  if (lane_index() == 0) shared[warp_index() + (mistake == kSharedOverrun ? 1 : 0)] = value;
  if (mistake != kNoBarrier) sync_block();
  float sum = 0;
  for (int warp = 0; warp < warp_count(); ++warp) sum += shared[warp];
  if (mistake != kNoSecondBarrier) sync_block();
  return sum;
}

// One row for each block, several for each if there are fewer.
__global__ void row_sums(const float* matrix, int rows, int columns, float* sums, Mistake mistake) {
  float* const shared = static_cast<float*>(shared_memory());
  if (mistake == kEarlyExit && threadIdx.x == 7) return;
  if (mistake == kDivergent && warp_index() == 1) sync_block();
  for (int row = int(blockIdx.x); row < rows; row += int(gridDim.x)) {
    float sum = 0;
    for (int c = int(threadIdx.x); c < columns; c += int(blockDim.x))
      sum += matrix[int64_t(row) * columns + c];
    if (mistake == kWarpSplit && lane_index() < 16) sum = warp_sum(sum);
    sum = block_sum(sum, shared, mistake);
    if (threadIdx.x == 0) sums[row] = sum;
  }
}

// A thread for each column. Each block of a group adds its rows; then block 0 adds what the others have.
template <typename Group>
__global__ void column_sums_on_chip(const float* matrix, int rows, int columns, float* sums,
                                    Mistake mistake) {
  float* const partial = static_cast<float*>(shared_memory());
  for (int c = int(threadIdx.x); c < columns; c += int(blockDim.x)) {
    float sum = 0;
    for (int row = Group::rank(); row < rows; row += Group::size()) sum += matrix[int64_t(row) * columns + c];
    partial[c] = sum;
  }
  if (mistake != kNoBarrier) Group::sync();
  if (Group::rank() == 0) {
    for (int c = int(threadIdx.x); c < columns; c += int(blockDim.x)) {
      float sum = 0;
      for (int rank = 0; rank < Group::size() + (mistake == kBadRank); ++rank) {
        const float* const pointer = mistake == kBadPointer ? matrix : partial + c;
        sum += *Group::at(pointer, rank);
      }
      sums[c] = sum;
    }
  }
  if (mistake != kEarlyExit) Group::sync();
}

// The same through global memory.
__global__ void column_sums_in_grid(const float* matrix, int rows, int columns, float* partial, float* sums,
                                    Mistake mistake) {
  float* const own = partial + int64_t(GridGroup::rank()) * columns;
  for (int c = int(threadIdx.x); c < columns; c += int(blockDim.x)) {
    own[c] = 0;
    for (int row = GridGroup::rank(); row < rows; row += GridGroup::size())
      own[c] += matrix[int64_t(row) * columns + c];
  }
  if (mistake != kNoBarrier) GridGroup::sync();
  for (int c = int(blockIdx.x * blockDim.x + threadIdx.x); c < columns; c += int(gridDim.x * blockDim.x)) {
    sums[c] = 0;
    for (int rank = 0; rank < GridGroup::size(); ++rank) sums[c] += partial[int64_t(rank) * columns + c];
  }
}

// Everything a warp can say, against its definition. Adds up what is wrong.
__global__ void warp_talk(int* wrong) {
  const int lane = lane_index(), thread = int(threadIdx.x);
  int bad = 0;
  for (int i = 0; i < 40; ++i) {
    bad += shuffle(thread * 100 + i, i) != (thread - lane + i % kWarp) * 100 + i;
    bad += shuffle(thread + 0.5 * i, 3) != thread - lane + 3 + 0.5 * i;
    bad += shuffle_xor((long long)(thread) << 40, 5) != (long long)(thread ^ 5) << 40;
    bad += shuffle_xor(unsigned(thread), 31) != unsigned(thread ^ 31);
    bad += ballot(lane % 3 == i % 3) != (i % 3 == 0 ? 0x49249249u : i % 3 == 1 ? 0x92492492u : 0x24924924u);
    bad += any_in_warp(lane == i) != (i < kWarp);
    bad += any_in_block(thread == i * 8) != (i * 8 < int(blockDim.x));
    sync_warp();
  }
  atomicAdd(wrong, bad);
}

// The last block to arrive is one and knows it.
__global__ void last_block(int* arrived, int* last) {
  if (threadIdx.x == 0 && atomicAdd(arrived, 1) == int(gridDim.x) - 1) atomicAdd(last, 1);
}

// Waits in a loop, which device.h leaves to GridGroup. It ends because atomic operations let others go on.
__global__ void wait_for_others(int* arrived, int* seen) {
  if (threadIdx.x != 0) return;
  atomicAdd(arrived, 1);
  while (atomicAdd(arrived, 0) < int(gridDim.x)) continue;
  atomicAdd(seen, 1);
}

const char* result(cudaError_t error) { return error == cudaSuccess ? "" : cudaGetErrorString(error); }

template <typename Group>
cudaError_t launch_on_chip(const Launch& how, const float* matrix, int rows, int columns, float* sums,
                           int mistake) {
  return launch_kernel(how, nullptr, column_sums_on_chip<Group>, matrix, rows, columns, sums,
                       Mistake(mistake));
}

}  // namespace
}  // namespace icm

#define EXPORT extern "C" __attribute__((visibility("default")))

// Each returns the error, "" when there is none.
EXPORT const char* row_sums(int blocks, int threads, int shared_bytes, const float* matrix, int rows,
                            int columns, float* sums, int mistake) {
  return icm::result(icm::launch_kernel({blocks, threads, size_t(shared_bytes)}, nullptr, icm::row_sums,
                                        matrix, rows, columns, sums, icm::Mistake(mistake)));
}

EXPORT const char* column_sums_on_chip(int cluster, int threads, const float* matrix, int rows, int columns,
                                       float* sums, int mistake) {
  const icm::Launch how{cluster, threads, size_t(columns) * sizeof(float), cluster};
  return icm::result(cluster == 1
                         ? icm::launch_on_chip<icm::BlockGroup>(how, matrix, rows, columns, sums, mistake)
                         : icm::launch_on_chip<icm::ClusterGroup>(how, matrix, rows, columns, sums, mistake));
}

EXPORT const char* column_sums_in_grid(int blocks, int threads, int cooperative, const float* matrix,
                                       int rows, int columns, float* partial, float* sums, int mistake) {
  const icm::Launch how{blocks, threads, 0, 1, cooperative != 0};
  return icm::result(icm::launch_kernel(how, nullptr, icm::column_sums_in_grid, matrix, rows, columns,
                                        partial, sums, icm::Mistake(mistake)));
}

EXPORT const char* warp_talk(int blocks, int threads, int* wrong) {
  return icm::result(icm::launch_kernel({blocks, threads}, nullptr, icm::warp_talk, wrong));
}

EXPORT const char* last_block(int blocks, int* arrived, int* last) {
  return icm::result(icm::launch_kernel({blocks, 64}, nullptr, icm::last_block, arrived, last));
}

EXPORT const char* wait_for_others(int blocks, int* arrived, int* seen) {
  return icm::result(
      icm::launch_kernel({blocks, 64, 0, 1, true}, nullptr, icm::wait_for_others, arrived, seen));
}

EXPORT int resident_blocks(int threads, int shared_bytes) {
  return icm::resident_blocks(icm::row_sums, threads, size_t(shared_bytes));
}

// bits of float -> bits of the 16-bit type, and back.
EXPORT void to_bfloat16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __float2bfloat16_rn(from[i]).bits;
}
EXPORT void to_half(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __float2half_rn(from[i]).bits;
}
EXPORT void from_bfloat16(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __bfloat162float({from[i]});
}
EXPORT void from_half(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __half2float({from[i]});
}
EXPORT void exp2_flushed(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = icm::exp2_flushed(from[i]);
}
