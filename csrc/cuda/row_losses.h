// The forward pass of the losses with one term per row: every row's softmax and term, and their reduction.
//
// Blocks take rows in turn and keep a partial sum each. A small batch is one cluster, whose first block adds the
// partial sums; a large one takes a second launch of one block. A ticket that tells the last block would save that
// launch, but needs memory that someone set to zero before: a launch too, or state that two streams would share.
#pragma once

#include <array>
#include <mutex>

#include "../row_loss_operators.h"
#include "device_tensors.h"
#include "row_softmax.h"
#include "teams.h"

namespace icm {

struct RowPartial {
  double sum;      // of the block's terms
  double invalid;  // not 0: a target of the block was
};

// Batches up to this size are read by one cluster: what a launch takes, it reads in that time. Untuned.
inline constexpr int64_t kMostClusterBytes = 512 << 10;

template <typename acc_t>
struct RowLossOutput {
  acc_t* loss;  // (rows,) or ()
  RowStats<acc_t> stats;
  int64_t rows;
  Reduction reduction;
  RowPartial* partials;  // one for each block; null if the blocks are one cluster
};

template <typename acc_t>
struct RowShared {
  RowScratch<acc_t> row;
  double sums[kMostRowWarps];
  RowPartial partials[kPortableCluster];
};

// What a thread keeps while rows are summed, in shared memory: registers decide how many blocks run.
template <typename Rows>
struct RowKept {
  using acc_t = acc_type<typename Rows::scalar_t>;
  typename Rows::Target target;
  RowTotals<acc_t> totals;
  double sum;  // of terms
  bool invalid;
};
template <typename Rows>
size_t row_shared_bytes(int threads) {
  return sizeof(RowShared<typename RowKept<Rows>::acc_t>) + size_t(threads) * sizeof(RowKept<Rows>);
}

// One block. An invalid target makes everything NaN.
template <typename acc_t>
__device__ __forceinline__ void write_row_loss(const RowLossOutput<acc_t>& out, const RowPartial* partials,
                                               int count, double* scratch) {
  double sum = 0;
  bool invalid = false;
#pragma unroll 1  // unrolled, it would take more registers than all the rest
  for (int k = int(threadIdx.x); k < count; k += int(blockDim.x)) {
    sum += partials[k].sum;
    invalid |= partials[k].invalid != 0;
  }
  sum = ThreadTeam::block().reduce<Sum>(sum, scratch);
  const bool is_none = out.reduction == Reduction::kNone;
  if (any_in_block(invalid)) {
    const acc_t nan = acc_t(__builtin_nan(""));
    for (int64_t i = threadIdx.x; i < out.rows; i += blockDim.x) {
      out.stats.maximum[i] = out.stats.sum[i] = nan;
      if (is_none) out.loss[i] = nan;
    }
    sum = nan;
  }
  if (!is_none && threadIdx.x == 0)
    out.loss[0] = acc_t(out.reduction == Reduction::kMean ? sum / double(out.rows) : sum);
}

template <typename acc_t>
__global__ void __launch_bounds__(kMostRowThreads)
    finish_row_loss_kernel(const RowLossOutput<acc_t> out, int count) {
  write_row_loss(out, out.partials, count, static_cast<RowShared<acc_t>*>(shared_memory())->sums);
}

// Rows has
//   scalar_t; int32_t rows, classes; Smoothing<acc_t> smoothing
//   kResidentBlocks: of the largest size, on a multiprocessor, as far as registers go
//   bool is_valid() const                               what all rows have in common
//   auto row(int64_t i) const                           a row source (row_softmax.h), of an invalid row too
//   auto target(int64_t i) const                        with a flag `valid`: what the term takes beside the totals
//   acc_t term(const Target&, const RowTotals&) const
//
// Targets and terms take as many instructions as a row's sums, for one row as for a warp of rows: so each thread of a
// team keeps the totals of one row, in turn, and then all of them make their terms together.
template <typename Rows>
__global__ void __launch_bounds__(kMostRowThreads, Rows::kResidentBlocks)
    row_loss_kernel(const Rows p, const RowLossOutput<acc_type<typename Rows::scalar_t>> out, int team_bits) {
  using scalar_t = typename Rows::scalar_t;
  using acc_t = acc_type<scalar_t>;
  RowShared<acc_t>& shared = *static_cast<RowShared<acc_t>*>(shared_memory());
  const bool is_cluster = out.partials == nullptr && gridDim.x > 1;
  if (is_cluster) ClusterGroup::sync();  // the first block's shared memory must exist before it is written
  const ThreadTeam team(team_bits);
  const int teams = int(blockDim.x) >> team_bits, stride = int(gridDim.x) * teams;
  RowKept<Rows>& kept = (reinterpret_cast<RowKept<Rows>*>(&shared + 1))[threadIdx.x];
  kept.sum = 0;
  kept.invalid = !p.is_valid();
  for (int begin = int(blockIdx.x) * teams; begin < p.rows; begin += stride << team_bits) {
    const int own = begin + team.index + team.lane * stride;
    const bool has_own = own < p.rows;
    for (int turn = 0; turn < team.size && begin + turn * stride < p.rows; ++turn) {
      const int i = begin + team.index + turn * stride;
      const auto row = p.row(i < p.rows ? i : p.rows - 1);
      RowSummation<scalar_t, std::decay_t<decltype(row)>> summation(team, row, p.classes, p.smoothing,
                                                                    &shared.row);
      summation.start();
      if (turn == 0 && has_own) kept.target = p.target(own);
      const RowTotals<acc_t> totals = summation.finish();
      if (turn == team.lane) kept.totals = totals;
    }
    if (!has_own) continue;
    const RowTotals<acc_t> totals = kept.totals;
    const acc_t term = kept.target.valid ? p.term(kept.target, totals) : acc_t(0);
    kept.invalid |= !kept.target.valid;
    out.stats.maximum[own] = totals.maximum;
    out.stats.sum[own] = totals.sum;
    if (out.reduction == Reduction::kNone)
      out.loss[own] = term;
    else
      kept.sum += double(term);
  }
  const double sum = ThreadTeam::block().reduce<Sum>(kept.sum, shared.sums);
  const bool invalid = any_in_block(kept.invalid);
  const RowPartial partial{sum, double(invalid)};
  if (out.partials != nullptr) {
    if (threadIdx.x == 0) out.partials[blockIdx.x] = partial;
    return;
  }
  if (threadIdx.x == 0) *ClusterGroup::at(shared.partials + blockIdx.x, 0) = partial;
  if (is_cluster)
    ClusterGroup::sync();
  else
    sync_block();
  if (blockIdx.x == 0) write_row_loss(out, shared.partials, int(gridDim.x), shared.sums);
}

struct RowDivision {
  int team_bits, threads, blocks;
  bool is_cluster;  // or a single block
};

template <typename scalar_t>
RowDivision divide_rows(int64_t rows, int64_t classes, int multiprocessors, bool has_clusters) {
  using H = Held<scalar_t>;
  // Up to two tiles of a warp: teams just wide enough for a tile, but not below whole lines of memory. Beyond: blocks,
  // whose tile holds the row if it can.
  const int64_t packs = ceil_divide(std::max<int64_t>(classes, 1), H::kSize);
  int64_t team = power_of_two(ceil_divide(packs, H::kPacks));
  if (classes <= 2 * kWarp * H::kElements)
    team = std::clamp<int64_t>(team, std::min<int64_t>(4, power_of_two(packs)), kWarp);
  else
    team = std::clamp<int64_t>(team, 2 * kWarp, kMostRowThreads);
  const int64_t bytes = rows * classes * int64_t(sizeof(scalar_t));
  const auto blocks = [&](int64_t threads) {
    return std::max<int64_t>(1, ceil_divide(rows, threads / team));
  };
  const bool in_block = team > kWarp;
  if (bytes <= (has_clusters ? kMostClusterBytes : kMostClusterBytes / kPortableCluster)) {
    const int threads = in_block ? int(team) : kMostRowThreads;
    const int64_t most = has_clusters ? kPortableCluster : 1;
    return {std::countr_zero(uint64_t(team)), threads, int(std::min(most, power_of_two(blocks(threads)))),
            true};
  }
  const int threads = in_block ? int(team) : kTeamThreads;
  const int64_t resident = int64_t(multiprocessors) * (2048 / threads);
  return {std::countr_zero(uint64_t(team)), threads, int(std::min(resident, blocks(threads))), false};
}

template <typename Rows>
void launch_row_loss(const DeviceScope& scope, const Rows& rows, const RowLoss& given) {
  using scalar_t = typename Rows::scalar_t;
  using acc_t = acc_type<scalar_t>;
  static PerDevice<int> clusters;
  const int largest = largest_cluster(clusters, scope, kMostRowThreads,
                                      row_shared_bytes<Rows>(kMostRowThreads), row_loss_kernel<Rows>);
  const RowDivision division = divide_rows<scalar_t>(rows.rows, rows.classes, scope.limits().multiprocessors,
                                                     largest >= kPortableCluster);
  RowLossOutput<acc_t> out{data<acc_t>(given.loss), row_stats_of<acc_t>(given.stats), rows.rows,
                           given.reduction, nullptr};
  Launch how{division.blocks, division.threads, row_shared_bytes<Rows>(division.threads)};
  if (division.is_cluster) {
    how.cluster = division.blocks;
    scope.launch(how, row_loss_kernel<Rows>, rows, out, division.team_bits);
    return;
  }
  const Tensor partials = new_contiguous({division.blocks, 2}, ScalarType::Double, given.stats);
  out.partials = data<RowPartial>(partials);
  scope.launch(how, row_loss_kernel<Rows>, rows, out, division.team_bits);
  scope.launch({1, kMostRowThreads, sizeof(RowShared<acc_t>)}, finish_row_loss_kernel<acc_t>, out,
               division.blocks);
}

// What both directions take of the logits. Rows, and classes of a row, are counted in 32 bits.
template <typename T>
struct Logits2d {
  using scalar_t = T;
  const scalar_t* logits;
  int32_t rows, classes;
  int64_t row_stride;

  __device__ __forceinline__ const scalar_t* at(int64_t i) const { return logits + i * row_stride; }
};

// The logits, copied if the classes of a row do not follow each other in memory: rows could not be read in packs.
template <typename scalar_t>
class LogitsInRows {
 public:
  LogitsInRows(const char* op, const Tensor& logits)
      : memory_(logits.stride(1) == 1 || logits.size(1) <= 1 ? logits : torch::stable::contiguous(logits)) {
    constexpr int64_t most =
        kMostDividend - (1 << 22);  // a turn of the grid beyond the last row is still no overflow
    STD_TORCH_CHECK(logits.size(0) <= most && logits.size(1) <= most, op,
                    ": expected fewer than 2^31 - 2^22 rows and classes on CUDA");
  }
  Logits2d<scalar_t> logits() const {
    return {data<const scalar_t>(memory_), int32_t(memory_.size(0)), int32_t(memory_.size(1)),
            memory_.stride(0)};
  }

 private:
  Tensor memory_;
};

// The gradient that came in for a row's term.
template <typename acc_t>
struct IncomingGradient {
  FloatVector grad;
  double factor;
  __device__ __forceinline__ acc_t of(int64_t i) const { return acc_t(double(grad.at<acc_t>(i)) * factor); }
};

template <typename acc_t>
__device__ __forceinline__ bool is_nan(acc_t x) {
  return x != x;
}

}  // namespace icm
