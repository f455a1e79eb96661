// Maximum and sum of exponentials of a row of logits in one pass over memory, for any number of classes. A team of
// threads holds a tile of the row in registers; a row of several tiles is summed online, its sums rescaled whenever a
// tile has a larger maximum.
#pragma once

#include "../row_loss_math.h"
#include "packs.h"
#include "reductions.h"

namespace icm {

inline constexpr int kMostRowThreads = 512;
inline constexpr int kMostRowWarps = kMostRowThreads / kWarp;

// What one thread holds of a tile, as it was read: 16-bit logits are widened twice rather than kept twice as wide.
template <typename scalar_t>
struct Held {
  static constexpr int kSize = kPackBytes / int(sizeof(scalar_t)), kPacks = 4;
  static constexpr int kElements = kSize * kPacks;
};

template <typename acc_t>
__device__ __forceinline__ acc_t minus_infinity() {
  return -acc_t(__builtin_huge_val());
}

// A row source has
//   Raw load(int first, int count) const           a pack of the row; elements from count on are -inf
//   acc_t value(const Raw&, int k) const           the logit that element k stands for
//   acc_t at(int64_t c) const                      the logit of one class
template <typename scalar_t>
class LogitRow {
 public:
  static constexpr int kSize = Held<scalar_t>::kSize;
  using acc_t = acc_type<scalar_t>;
  using Raw = Pack<scalar_t, kSize>;

  __device__ __forceinline__ explicit LogitRow(const scalar_t* row)
      : row_(row), aligned_(has_aligned_packs<kSize>(row)) {}
  __device__ __forceinline__ Raw load(int first, int count) const {
    return load_pack<kSize>(row_ + first, count, aligned_, rounded<scalar_t>(minus_infinity<acc_t>()));
  }
  __device__ __forceinline__ acc_t value(const Raw& raw, int k) const { return raw.value(k); }
  __device__ __forceinline__ acc_t at(int64_t c) const { return to_acc(row_[c]); }

 private:
  const scalar_t* row_;
  bool aligned_;
};

// Label smoothing: each class weighs share, times its class weight if there are any.
template <typename acc_t>
struct Smoothing {
  acc_t share;              // 0: none
  const acc_t* weight;      // (C,) or null
  acc_t known_total;        // of all classes, without class weights
  const acc_t* sum_weight;  // of all classes, with them

  __device__ __forceinline__ bool exists() const { return share != 0; }
  __device__ __forceinline__ acc_t of(int64_t c) const {
    return weight == nullptr ? share : share * weight[c];
  }
  __device__ __forceinline__ acc_t total() const {
    return weight == nullptr ? known_total : share * *sum_weight;
  }
};

template <typename acc_t>
struct RowTotals {
  acc_t maximum;   // NaN drops out, the sum shows it; -inf if there is nothing else
  acc_t sum;       // of 2^T
  acc_t smoothed;  // of smoothing * T
};

// Words of shared memory for the reductions of one row.
template <typename acc_t>
struct RowScratch {
  acc_t maxima[kMostRowWarps], sums[kMostRowWarps], smoothed[kMostRowWarps];
};

// 2^T relative to another maximum. Of a row that has had none yet (-inf) the sum is 0, and stays it.
template <typename acc_t>
__device__ __forceinline__ acc_t rescale(acc_t from, acc_t to) {
  return from == to ? acc_t(1) : exp2_flushed(shifted(from, to));
}

template <typename scalar_t, typename Row>
class RowSummation {
 public:
  using acc_t = acc_type<scalar_t>;
  using H = Held<scalar_t>;

  __device__ __forceinline__ RowSummation(const ThreadTeam& team, const Row& row, int classes,
                                          const Smoothing<acc_t>& smoothing, RowScratch<acc_t>* scratch)
      : team_(team), row_(row), classes_(classes), smoothing_(smoothing), scratch_(scratch) {}

  // Starts to read the first tile.
  __device__ __forceinline__ void start() { load(0); }
  // Called by every thread of the block after start(); all of a team get the result.
  __device__ __forceinline__ RowTotals<acc_t> finish() {
    const int tile = team_.size * H::kElements;
    const bool is_one_tile = classes_ <= tile;
    add_tile(0, is_one_tile);
    for (int begin = tile; begin < classes_; begin += tile) {
      load(begin);
      add_tile(begin, false);
    }
    acc_t maximum = maximum_;
    if (!is_one_tile) {
      maximum = team_.reduce<Maximum>(maximum_, scratch_->maxima);
      move_to(maximum);
    }
    const acc_t sum = team_.reduce<Sum>(sum_, scratch_->sums);
    const acc_t smoothed = smoothing_.exists() ? team_.reduce<Sum>(smoothed_, scratch_->smoothed) : acc_t(0);
    // Without a finite logit T would be -inf - -inf.
    const bool is_empty = maximum == minus_infinity<acc_t>();
    return {maximum, is_empty ? acc_t(__builtin_nan("")) : sum, smoothing_.share * smoothed};
  }

 private:
  __device__ __forceinline__ int first(int begin, int u) const {
    return begin + (u * team_.size + team_.lane) * H::kSize;
  }

  __device__ __forceinline__ void load(int begin) {
#pragma unroll
    for (int u = 0; u < H::kPacks; ++u)
      if (const int c = first(begin, u); c < classes_) raw_[u] = row_.load(c, min(H::kSize, classes_ - c));
  }

  __device__ __forceinline__ void add_tile(int begin, bool is_only) {
    acc_t largest = maximum_;
#pragma unroll
    for (int u = 0; u < H::kPacks; ++u)
      if (first(begin, u) < classes_) {
#pragma unroll
        for (int k = 0; k < H::kSize; ++k) largest = max(largest, row_.value(raw_[u], k));
      }
    if (is_only)
      maximum_ = team_.reduce<Maximum>(largest, scratch_->maxima);
    else
      move_to(largest);
    const acc_t offset = maximum_ == minus_infinity<acc_t>() ? acc_t(0) : maximum_;
#pragma unroll
    for (int u = 0; u < H::kPacks; ++u)
      if (const int c = first(begin, u); c < classes_) {
        acc_t sum = 0;
#pragma unroll
        for (int k = 0; k < H::kSize; ++k) sum += exp2_flushed(shifted(row_.value(raw_[u], k), offset));
        sum_ += sum;
        if (smoothing_.exists()) add_smoothed(c, raw_[u], offset);
      }
  }

  __device__ __forceinline__ void add_smoothed(int c, const typename Row::Raw& raw, acc_t offset) {
#pragma unroll
    for (int k = 0; k < H::kSize; ++k) {
      if (c + k >= classes_) continue;
      const acc_t weight = smoothing_.weight == nullptr ? acc_t(1) : smoothing_.weight[c + k];
      smoothed_ += weight * shifted(row_.value(raw, k), offset);
      seen_ += weight;
    }
  }

  __device__ __forceinline__ void move_to(acc_t maximum) {
    sum_ *= rescale(maximum_, maximum);
    // Relative to -inf nothing but -inf was added, relative to 0.
    if (maximum_ != minus_infinity<acc_t>()) smoothed_ += shifted(maximum_, maximum) * seen_;
    maximum_ = maximum;
  }

  const ThreadTeam& team_;
  const Row& row_;
  const int classes_;
  const Smoothing<acc_t>& smoothing_;
  RowScratch<acc_t>* const scratch_;
  typename Row::Raw raw_[H::kPacks];
  acc_t maximum_ = minus_infinity<acc_t>(), sum_ = 0, smoothed_ = 0, seen_ = 0;
};

}  // namespace icm
