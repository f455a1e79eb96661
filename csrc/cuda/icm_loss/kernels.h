// The kernels of the loss, put together from the passes. Which one runs with how many blocks: launch.h.
#pragma once

#include "gradient.h"
#include "plan.h"
#include "repair.h"

namespace icm {

inline constexpr int kThreads = 512;  // untuned
inline constexpr int kFactorThreads = 256;

struct ForwardRun {
  int workers;  // blocks that form sums; the one after them sorts the target's classes
  int64_t tiles;
  bool plans_inside;   // every block reads the target for itself, for small batches
  bool with_gradient;  // also writes the gradient for an incoming gradient of 1; one tile for each worker
  GradientOutput gradient;
};

// What a block keeps beside Shared: its own reading of the target, its partial sums where others read them, and the
// factors and staging of the gradient.
template <typename TileType, typename Group>
struct SharedExtra {
  using acc_t = typename TileType::acc;
  static constexpr int kRows = TileType::rows;
  Plan<acc_t> plan;
  int32_t* slot_of;
  acc_t *partial, *alpha, *own_loss, *beta, *staging;

  ICM_HOST_DEVICE SharedExtra(Arena& arena, const ForwardRun& run, int64_t columns, int64_t classes,
                              int warps) {
    plan = {};
    slot_of = nullptr;
    partial = alpha = own_loss = beta = staging = nullptr;
    if (Group::has_shared) partial = arena.take<acc_t>(column_blocks(columns) * kWarp);
    if (run.plans_inside) {
      plan.header = arena.take<int32_t>(kHeaderWords);
      plan.columns = arena.take<Column<acc_t>>(column_blocks(columns) * kWarp);
      plan.present = arena.take<int32_t>(most_slots(columns, classes));
      slot_of = arena.take<int32_t>(classes);
    }
    if (run.with_gradient) {
      alpha = arena.take<acc_t>(kRows);
      own_loss = arena.take<acc_t>(kRows);
      beta = arena.take<acc_t>(2 * columns);
      staging = arena.take<acc_t>(staging_size(warps, kRows));
    }
  }
};

// Every output of an invalid target.
template <typename acc_t>
__device__ void forward_of_invalid(const Forward<acc_t>& f, const ForwardRun& run) {
  const int64_t rows = f.logits.rows, terms = f.out.reduction == 0 ? rows : 1;
  fill_nan(f.out.loss, terms);
  fill_nan(f.out.terms, 2 * terms);
  for (acc_t* values : {f.rows.offset, f.rows.shift, f.rows.sum, f.rows.weight}) fill_nan(values, rows);
  for (acc_t* values : {f.columns.offset, f.columns.shift, f.columns.sum}) fill_nan(values, f.labels.count);
  if (run.with_gradient) fill_nan(static_cast<acc_t*>(run.gradient.dlogits), rows * f.logits.classes);
}

// The gradient for an incoming gradient of 1, from the tile that the sums left in shared memory.
template <typename Group, typename TileType>
__device__ void gradient_inside(const Forward<typename TileType::acc>& f, const ForwardRun& run,
                                const TileType& tile, const SharedExtra<TileType, Group>& extra,
                                typename TileType::acc sigma, bool repaired, int64_t row0, int valid) {
  using acc_t = typename TileType::acc;
  const acc_t g = f.out.reduction == 1 ? acc_t(1) / acc_t(f.logits.rows) : acc_t(1);
  const acc_t g_row = f.out.class_axis ? g : acc_t(0), g_column = f.out.pair_axis ? g : acc_t(0);
  const int32_t entries = f.plan.first[2 * tile.used];
  for (int32_t k = threadIdx.x; k < entries; k += blockDim.x)
    extra.beta[k] = f.out.pair_axis ? g_column / f.columns.sum[f.plan.owners[k]] : acc_t(0);
  if (int(threadIdx.x) < valid) {
    extra.alpha[threadIdx.x] = f.out.class_axis ? g_row / f.rows.sum[row0 + threadIdx.x] : acc_t(0);
    extra.own_loss[threadIdx.x] = g_row + g_column;
  }
  sync_block();
  const GradientFactors<acc_t> factors{extra.alpha - row0, extra.own_loss - row0, extra.beta,     acc_t(1),
                                       acc_t(1),           f.out.class_axis,      f.out.pair_axis};
  gradient_of_tile(f.logits, f.plan, f.rows, f.columns, factors, tile, sigma, repaired, run.gradient,
                   extra.staging, row0, valid, nullptr);
}

// Where a block's tile lies.
template <bool kTileInShared, typename TileType>
__device__ __forceinline__ typename TileType::stored* tile_memory(const Shared<TileType>& shared,
                                                                  typename TileType::acc* tiles, int block,
                                                                  int64_t tile_size) {
  if constexpr (kTileInShared)
    return shared.tile;
  else
    return tiles + block * tile_size;
}

// Loss and statistics, in small batches with the gradient: two barriers of the group, four more for a repair.
template <typename TileType, typename Group, bool kTileInShared>
__global__ void __launch_bounds__(kThreads, 1)
    icm_loss_forward_kernel(Forward<typename TileType::acc> arguments, ForwardRun run) {
  using acc_t = typename TileType::acc;
  constexpr int kRows = TileType::rows;
  Forward<acc_t> f = arguments;
  const int rank = Group::rank(), size = Group::size(), warps = warp_count();
  Arena arena(shared_memory());
  const int64_t slots = most_slots(f.labels.count, f.logits.classes);
  const int64_t tile_size = TileType::size(slots);
  const Shared<TileType> shared(arena, kTileInShared ? tile_size : 0, warps, run.workers);
  const SharedExtra<TileType, Group> extra(arena, run, f.labels.count, f.logits.classes, warps);
  if (run.plans_inside) {
    if (rank > 0) {  // the first block fills the plan that is kept
      f.plan.header = extra.plan.header;
      f.plan.columns = extra.plan.columns;
      f.plan.present = extra.plan.present;
    }
    plan_columns(f.labels, f.logits.classes, f.plan, extra.slot_of, shared.counters);
  }
  if (f.plan.header[kIsInvalid] != 0) return forward_of_invalid(f, run);
  const TileType tile{tile_memory<kTileInShared>(shared, f.scratch.tiles, rank, tile_size),
                      f.plan.header[kUsedClasses]};
  const Scale<acc_t> scale(f.logits.scale);
  const Share share{rank, run.workers, run.tiles};
  const int64_t padded = column_blocks(f.labels.count) * kWarp;
  const auto partial_of = [&](int worker) {
    if constexpr (Group::has_shared) return worker == rank ? extra.partial : Group::at(extra.partial, worker);
    return f.scratch.partial + worker * padded;
  };

  bool untrusted = false;
  if (rank < run.workers) {
    untrusted = sum_tiles(f, share, scale, tile, shared, partial_of(rank));
  } else {
    const int64_t bytes = tile_size * int64_t(sizeof(typename TileType::stored)),
                  fitting = bytes / (2 * int64_t(sizeof(int32_t)) * tile.used);
    plan_lists(f.plan, f.labels.count, tile.used, reinterpret_cast<int32_t*>(tile.values),
               int(fitting < warps ? fitting : warps), shared.counters);
  }
  Group::sync();
  merge_factors(f.scratch.offset, run.workers, scale.sigma, shared.factor);
  const Slice slice(f.labels.count, rank, size);
  double sums[2] = {0, 0};
  untrusted |= merge_slice<kRows>(f, share, slice, scale.sigma, shared.factor, partial_of, sums);
  block_sum(sums, shared.sum_scratch);
  untrusted = any_in_block(untrusted);
  if (threadIdx.x == 0) {
    f.scratch.untrusted[rank] = untrusted;
    for (int k = 0; k < 2; ++k) f.scratch.block_sums[2 * rank + k] = sums[k];
  }
  Group::sync();
  bool repaired = false;
  for (int block = threadIdx.x; block < size; block += blockDim.x)
    repaired |= f.scratch.untrusted[block] != 0;
  repaired = any_in_block(repaired);
  if (repaired) {
    sums[0] = sums[1] = 0;
    repair<Group>(f, share, slice, scale, tile, shared, rank < run.workers ? partial_of(rank) : nullptr,
                  partial_of, sums);
    block_sum(sums, shared.sum_scratch);
    if (threadIdx.x == 0)
      for (int k = 0; k < 2; ++k) f.scratch.block_sums[2 * rank + k] = sums[k];
    Group::sync();
  }
  if (rank == 0) write_loss(f.out, f.scratch.block_sums, size, f.logits.rows);
  if (run.with_gradient && rank < run.workers)
    gradient_inside<Group>(f, run, tile, extra, scale.sigma, repaired, rank * int64_t(kRows),
                           valid_rows<kRows>(f.logits, rank));
}

// Columns and used classes of a large batch. One block.
template <typename acc_t>
__global__ void __launch_bounds__(1024)
    icm_loss_plan_kernel(MixedLabels labels, int64_t classes, Plan<acc_t> plan, int32_t* slot_of) {
  plan_columns(labels, classes, plan, slot_of, static_cast<int32_t*>(shared_memory()));
}

template <typename acc_t>
struct Backward {
  Logits logits;
  int64_t columns;
  Plan<acc_t> plan;
  RowSums<acc_t> rows;
  LogSum<acc_t> sums;
  FloatVector lam;  // of which a factored tile needs the only one
  FloatVector grad_row, grad_column;
  bool class_axis, pair_axis;
  double grad_factor;  // 1 / rows for a mean
  GradientOutput out;
  bool gradient_of_scale;
  acc_t* dscale;                          // 0 if it is not asked for
  acc_t *alpha, *own_loss, *beta, *unit;  // scratch: (rows,), (rows,), (2 * columns,), ()
  acc_t* tiles;                           // as in Scratch
  double* block_sums;                     // (blocks, 2)
};

// A power of two by which large incoming gradients are divided while they are divided by sums, which may be as small
// as 2^-94: the quotient must not overflow. At least 1.
template <typename acc_t>
__device__ acc_t gradient_unit(const Backward<acc_t>& b, acc_t* scratch) {
  acc_t largest = 1;
  const auto look_at = [&](const FloatVector& grad, int64_t count) {
    if (grad.stride == 0) count = count < 1 ? count : 1;
    for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
      const acc_t g = grad.at<acc_t>(k), size = g < 0 ? -g : g;
      if (size > largest && size <= largest_finite<acc_t>()) largest = size;
    }
  };
  look_at(b.grad_row, b.logits.rows);
  look_at(b.grad_column, b.columns);
  combine_warps<1>(PerRow<acc_t, 1>{largest}, scratch, scratch + warp_count(), Larger());
  largest = scratch[warp_count()];
  constexpr acc_t everyday = acc_t(1 << 10);
  constexpr auto fraction = sizeof(acc_t) == 4 ? (uint64_t(1) << 23) - 1 : (uint64_t(1) << 52) - 1;
  const auto bits = to_bits(largest);
  return largest <= everyday ? acc_t(1)
                             : from_bits<acc_t>(std::remove_const_t<decltype(bits)>(bits & ~fraction));
}

// Factors of the gradient.
template <typename acc_t>
__global__ void __launch_bounds__(kFactorThreads) icm_loss_factors_kernel(Backward<acc_t> b) {
  const acc_t unit = gradient_unit(b, static_cast<acc_t*>(shared_memory()));
  const double factor = b.grad_factor / double(unit);
  const FloatVector grad_row = b.grad_row, grad_column = b.grad_column;
  const int64_t self = int64_t(blockIdx.x) * blockDim.x + threadIdx.x,
                threads = int64_t(gridDim.x) * blockDim.x;
  const bool is_valid = b.plan.header[kIsInvalid] == 0;
  const int32_t entries = is_valid ? b.plan.first[2 * b.plan.header[kUsedClasses]] : 0;
  for (int64_t k = self; k < entries; k += threads) {
    const int64_t j = b.plan.owners[k];
    // A column that no row here owns may have no sum of its own, and then has no gradient either.
    const acc_t g = b.pair_axis ? acc_t(factor * double(grad_column.at<acc_t>(j))) : acc_t(0);
    b.beta[k] = g == acc_t(0) ? acc_t(0) : g / b.sums.sum[j];
  }
  for (int64_t i = self; i < b.logits.rows; i += threads) {
    const acc_t g_row = b.class_axis ? acc_t(factor * double(grad_row.at<acc_t>(i))) : acc_t(0);
    const acc_t g_column =
        b.pair_axis ? acc_t(factor * double(grad_column.at<acc_t>(b.logits.diagonal + i))) : acc_t(0);
    b.alpha[i] = b.class_axis ? g_row / b.rows.sum[i] : acc_t(0);
    b.own_loss[i] = g_row + g_column;
  }
  if (self == 0) {
    *b.unit = unit;
    *b.dscale = 0;
  }
}

// The gradient of tiles blockIdx.x, + gridDim.x, ...
template <typename TileType, bool kTileInShared>
__global__ void __launch_bounds__(kThreads, 1) icm_loss_gradient_kernel(Backward<typename TileType::acc> b) {
  using acc_t = typename TileType::acc;
  constexpr int kRows = TileType::rows;
  if (b.plan.header[kIsInvalid] != 0) {
    const int64_t count = b.logits.rows * b.logits.classes;
    for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < count;
         k += int64_t(gridDim.x) * blockDim.x)
      store_gradient(b.out, k, not_a_number<acc_t>());
    if (threadIdx.x == 0) b.block_sums[2 * blockIdx.x] = not_a_number<double>();
    return;
  }
  Arena arena(shared_memory());
  const int64_t tile_size = TileType::size(most_slots(b.columns, b.logits.classes));
  const Shared<TileType> shared(arena, kTileInShared ? tile_size : 0, warp_count(), 0);
  acc_t* staging = arena.take<acc_t>(staging_size(warp_count(), kRows));
  const TileType tile{tile_memory<kTileInShared>(shared, b.tiles, int(blockIdx.x), tile_size),
                      b.plan.header[kUsedClasses]};
  const Scale<acc_t> scale(b.logits.scale);
  const acc_t unit = *b.unit;
  const GradientFactors<acc_t> factors{b.alpha,     b.own_loss,   b.beta,     unit,
                                       scale.value, b.class_axis, b.pair_axis};
  const bool repaired = b.rows.weight[0] != b.rows.weight[0];
  double sums[2] = {0, 0};
  for (int64_t t = blockIdx.x; t * kRows < b.logits.rows; t += gridDim.x) {
    const int64_t row0 = t * kRows;
    const int valid = valid_rows<kRows>(b.logits, t);
    load_tile(b.logits, scale.sign, b.plan.present, row0, valid, tile, shared.part_max,
              static_cast<acc_t*>(nullptr));
    if (!repaired) {
      if (threadIdx.x < kRows)
        shared.offset[threadIdx.x] = int(threadIdx.x) < valid ? b.rows.offset[row0 + threadIdx.x] : acc_t(0);
      sync_block();
      shift_tile(tile, shared.offset, scale.sigma);
      if constexpr (TileType::factored) factor_tile(tile, b.lam.template at<acc_t>(0));
    }
    gradient_of_tile(b.logits, b.plan, b.rows, b.sums, factors, tile, scale.sigma, repaired, b.out, staging,
                     row0, valid, b.gradient_of_scale ? &sums[0] : nullptr);
    sync_block();
  }
  block_sum(sums, shared.sum_scratch);
  if (threadIdx.x == 0) b.block_sums[2 * blockIdx.x] = sums[0] * double(unit);
}

// dL/dscale, added up over the blocks in order. One warp.
template <typename acc_t>
__global__ void icm_loss_dscale_kernel(const double* block_sums, int blocks, acc_t* dscale) {
  double sum = 0;
  for (int block = lane_index(); block < blocks; block += kWarp) sum += block_sums[2 * block];
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) sum += shuffle_xor(sum, width);
  if (threadIdx.x == 0) *dscale = acc_t(sum);
}

}  // namespace icm
