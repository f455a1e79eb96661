// From sums to the loss: columns merged over the blocks' partial sums, terms of rows and columns, reductions.
#pragma once

#include "../../softmax_math.h"
#include "problem.h"

namespace icm {

// Row and column term of an image in nats. Not repaired: `row_score` is log2 of the target's exponential in its row,
// `weight` the row's. Repaired: both scores are distances, in units of the logits.
template <typename acc_t>
struct ImageTerms {
  acc_t row, column;
};

template <typename acc_t>
__device__ __forceinline__ ImageTerms<acc_t> image_terms(acc_t d, acc_t row_sum, acc_t target, acc_t y,
                                                         acc_t column_sum) {
  const auto base2 = [](acc_t x) { return log2(x); };
  return {log_ratio<acc_t>(row_sum, exp2_flushed(d), d, base2) * acc_t(kLn2),
          log_ratio<acc_t>(column_sum, target, y, base2) * acc_t(kLn2)};
}

// The sum over the block of two numbers, in a fixed order. `scratch`: two words for each warp. Thread 0 gets it.
__device__ __forceinline__ void block_sum(double (&value)[2], double* scratch) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2)
#pragma unroll
    for (int k = 0; k < 2; ++k) value[k] += shuffle_xor(value[k], width);
  if (lane_index() == 0)
    for (int k = 0; k < 2; ++k) scratch[2 * warp_index() + k] = value[k];
  sync_block();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < warp_count(); ++warp)
      for (int k = 0; k < 2; ++k) value[k] += scratch[2 * warp + k];
  sync_block();
}

// Adds an image's terms to the block's sums, or stores them if nothing is to be reduced.
template <typename acc_t>
__device__ __forceinline__ void add_terms(const LossOutput<acc_t>& out, ImageTerms<acc_t> terms,
                                          int64_t image, int64_t rows, double (&sums)[2]) {
  const acc_t row = out.class_axis ? terms.row : acc_t(0), column = out.pair_axis ? terms.column : acc_t(0);
  if (out.reduction != 0) {
    sums[0] += double(row);
    sums[1] += double(column);
    return;
  }
  out.loss[image] = row + column;
  out.terms[image] = row;
  out.terms[rows + image] = column;
}

// One warp adds the blocks' sums up, in order, and writes the reduced loss.
template <typename acc_t>
__device__ void write_loss(const LossOutput<acc_t>& out, const double* block_sums, int blocks, int64_t rows) {
  if (warp_index() != 0 || out.reduction == 0) return;
  double sums[2] = {0, 0};
  for (int block = lane_index(); block < blocks; block += kWarp)
    for (int k = 0; k < 2; ++k) sums[k] += block_sums[2 * block + k];
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2)
    for (int k = 0; k < 2; ++k) sums[k] += shuffle_xor(sums[k], width);
  if (lane_index() != 0) return;
  const double count = out.reduction == 1 ? double(rows) : 1.0;
  out.terms[0] = acc_t(sums[0] / count);
  out.terms[1] = acc_t(sums[1] / count);
  out.loss[0] = acc_t((sums[0] + sums[1]) / count);
}

// Every output is NaN when the target is invalid. Called by every thread of the grid.
template <typename acc_t>
__device__ __forceinline__ void fill_nan(acc_t* out, int64_t count) {
  for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < count;
       k += int64_t(gridDim.x) * blockDim.x)
    out[k] = not_a_number<acc_t>();
}

}  // namespace icm
