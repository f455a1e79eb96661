// Row and column sums of exponentials (eq. 5 and 7), and their merging over the blocks that formed them.
//
// A worker is a block that goes over some tiles of rows, one after another; it keeps a partial sum for every column,
// relative to an offset of its own. `Scratch` is global memory that no block shares until the group's next barrier.
#pragma once

#include "scores.h"
#include "terms.h"

namespace icm {

template <typename acc_t>
struct Scratch {
  acc_t *row_score, *column_score;  // of each image's own column; column_score after a repair only
  acc_t* partial;      // (workers, columns in whole warps); null where blocks reach each other's memory
  acc_t* offset;       // (workers,)
  int32_t* untrusted;  // (blocks,)
  double* block_sums;  // (blocks, 2)
  acc_t* tiles;        // (blocks, size of a tile) where they do not fit in shared memory, or null
  int32_t* slot_of;    // (classes,)
};

template <typename acc_t>
struct Forward {
  Logits logits;
  MixedLabels labels;
  Plan<acc_t> plan;
  RowSums<acc_t> rows;
  LogSum<acc_t> columns;
  LossOutput<acc_t> out;
  Scratch<acc_t> scratch;
};

// Words for a prefix sum or for the median's histogram.
inline constexpr int kCounters = 257;

// What a block keeps in its shared memory.
template <typename TileType>
struct Shared {
  using acc_t = typename TileType::acc;
  typename TileType::stored* tile;
  acc_t *part_max, *offset, *row, *row_scratch, *factor;
  double* sum_scratch;
  int32_t* counters;

  // `tile_size`: elements of the tile, 0 if it lies in global memory.
  ICM_HOST_DEVICE Shared(Arena& arena, int64_t tile_size, int warps, int workers)
      : tile(arena.take<typename TileType::stored>(tile_size)),
        part_max(arena.take<acc_t>(load_scratch<TileType>(warps))),
        offset(arena.take<acc_t>(TileType::rows)),
        row(arena.take<acc_t>(TileType::rows)),
        row_scratch(arena.take<acc_t>(warps * TileType::rows)),
        factor(arena.take<acc_t>(workers + 1)),
        sum_scratch(arena.take<double>(2 * warps)),
        counters(arena.take<int32_t>(kCounters)) {}
};

// The tiles of one worker and where they lie.
struct Share {
  int worker, workers;
  int64_t tiles;  // of all workers
};

template <int kRows>
__device__ __forceinline__ int valid_rows(const Logits& logits, int64_t tile) {
  const int64_t left = logits.rows - tile * kRows;
  return int(left < kRows ? left : kRows);
}

template <typename acc_t>
__device__ __forceinline__ acc_t largest_of(const acc_t* values, int count) {
  acc_t largest = values[0];
  for (int k = 1; k < count; ++k) largest = Larger()(largest, values[k]);
  return largest;
}

// Every factor of a worker's partial sums and of the weights of its earlier rows, when a tile's offset exceeds the
// running one by much: 2^kOffsetSlack stays far from overflow.
template <int kRows, typename acc_t>
__device__ void rescale(const Forward<acc_t>& f, const Share& share, int64_t tile, acc_t* partial,
                        acc_t factor) {
  sync_block();
  for (int64_t j = threadIdx.x; j < column_blocks(f.labels.count) * kWarp; j += blockDim.x)
    partial[j] *= factor;
  for (int64_t t = share.worker; t < tile; t += share.workers)
    for (int r = threadIdx.x; r < kRows; r += blockDim.x) f.rows.weight[t * kRows + r] *= factor;
  sync_block();
}

// Sums of one tile. Writes its rows' statistics; true when a row sum cannot be trusted.
template <typename TileType>
__device__ bool sum_tile(const Forward<typename TileType::acc>& f, const TileType& tile,
                         const Shared<TileType>& shared, int64_t row0, int valid,
                         typename TileType::acc block_offset, typename TileType::acc sigma, bool first,
                         typename TileType::acc* partial) {
  using acc_t = typename TileType::acc;
  const int64_t count = f.labels.count;
  const auto weight_of = [&](int row) {
    return row < valid ? exp2_flushed((shared.offset[row] - block_offset) * sigma) : acc_t(0);
  };
  const auto w = for_rows<TileType>(weight_of);
  const LaneScores<TileType> scores(tile, for_rows<TileType>([&](int row) { return shared.offset[row]; }),
                                    sigma);
  auto row_sums = for_rows<TileType>([](int) { return acc_t(0); });
  const Column<acc_t>* columns = f.plan.columns + lane_side<TileType>();
  acc_t* sums = partial + lane_column<TileType>();
  for_each_block(count, [&](int64_t j0) {
    const acc_t column = sum_block(scores, columns + j0, w, row_sums);
    sums[j0] = first ? column : sums[j0] + column;
  });
  combine_warps<TileType::lanes>(row_sums, shared.row_scratch, shared.row, Add());
  bool untrusted = false;
  if (int(threadIdx.x) < valid) {
    const int64_t i = row0 + threadIdx.x;
    const acc_t sum = shared.row[threadIdx.x];
    f.rows.offset[i] = shared.offset[threadIdx.x];
    f.rows.shift[i] = 0;
    f.rows.sum[i] = sum;
    f.rows.weight[i] = weight_of(threadIdx.x);
    untrusted = f.out.class_axis && !sum_is_trusted(sum, double(count));
  }
  return untrusted;
}

// Sums of all tiles of a worker; the last one stays in shared memory. True when a row sum cannot be trusted.
template <typename TileType>
__device__ bool sum_tiles(const Forward<typename TileType::acc>& f, const Share& share,
                          const Scale<typename TileType::acc>& scale, const TileType& tile,
                          const Shared<TileType>& shared, typename TileType::acc* partial) {
  using acc_t = typename TileType::acc;
  constexpr int kRows = TileType::rows;
  bool untrusted = false;
  acc_t offset = 0;
  for (int64_t t = share.worker; t < share.tiles; t += share.workers) {
    const int64_t row0 = t * kRows;
    const int valid = valid_rows<kRows>(f.logits, t);
    load_tile(f.logits, scale.sign, f.plan.present, row0, valid, tile, shared.part_max, shared.offset);
    shift_tile(tile, shared.offset, scale.sigma);
    if (int(threadIdx.x) < valid) {
      const int64_t i = row0 + threadIdx.x;
      f.scratch.row_score[i] = score(tile, f.plan.columns[f.logits.diagonal + i], int(threadIdx.x),
                                     shared.offset[threadIdx.x], scale.sigma);
    }
    if constexpr (TileType::factored) factor_tile(tile, acc_t(f.labels.lam(0)));
    const acc_t tile_offset = largest_of(shared.offset, valid);
    const bool first = t == share.worker;
    if (first) offset = tile_offset;
    if ((tile_offset - offset) * scale.sigma > acc_t(kOffsetSlack)) {
      rescale<kRows>(f, share, t, partial, exp2_flushed((offset - tile_offset) * scale.sigma));
      offset = tile_offset;
    }
    untrusted |= sum_tile(f, tile, shared, row0, valid, offset, scale.sigma, first, partial);
    sync_block();
  }
  if (threadIdx.x == 0) f.scratch.offset[share.worker] = offset;
  return untrusted;
}

// The largest offset M of all workers, and each one's 2^((offset - M) * sigma). Ends with a barrier.
template <typename acc_t>
__device__ acc_t merge_factors(const acc_t* offsets, int workers, acc_t sigma, acc_t* factor) {
  if (warp_index() == 0) {
    acc_t largest = -largest_finite<acc_t>();
    for (int worker = lane_index(); worker < workers; worker += kWarp)
      largest = Larger()(largest, offsets[worker]);
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2)
      largest = Larger()(largest, shuffle_xor(largest, width));
    for (int worker = lane_index(); worker < workers; worker += kWarp)
      factor[worker] = exp2_flushed((offsets[worker] - largest) * sigma);
    if (lane_index() == 0) factor[workers] = largest;
  }
  sync_block();
  return factor[workers];
}

// A block's slice of the columns.
struct Slice {
  int64_t begin, end;
  __device__ __forceinline__ Slice(int64_t columns, int block, int blocks) {
    const int64_t width = (columns + blocks - 1) / blocks;
    begin = block * width < columns ? block * width : columns;
    end = begin + width < columns ? begin + width : columns;
  }
};

// Merges the workers' sums of a slice of the columns in order, and forms the terms of their images. True when a column
// sum cannot be trusted. partial_of(worker): that worker's partial sums.
template <int kRows, typename acc_t, typename PartialOf>
__device__ bool merge_slice(const Forward<acc_t>& f, const Share& share, const Slice& slice, acc_t sigma,
                            const acc_t* factor, PartialOf partial_of, double (&sums)[2]) {
  bool untrusted = false;
  const acc_t largest = factor[share.workers];
  for (int64_t j = slice.begin + threadIdx.x; j < slice.end; j += blockDim.x) {
    acc_t sum = 0;
    for (int worker = 0; worker < share.workers; ++worker)
      sum = fused_multiply_add(factor[worker], partial_of(worker)[j], sum);
    f.columns.offset[j] = largest;
    f.columns.shift[j] = 0;
    f.columns.sum[j] = sum;
    untrusted |= f.out.pair_axis && !sum_is_trusted(sum, double(f.logits.rows));
    const int64_t i = j - f.logits.diagonal;
    if (i < 0 || i >= f.logits.rows) continue;
    const acc_t weight = f.rows.weight[i] * factor[i / kRows % share.workers], d = f.scratch.row_score[i];
    f.rows.weight[i] = weight;
    const acc_t y = d + (f.rows.offset[i] - largest) * sigma;
    add_terms(f.out, image_terms(d, f.rows.sum[i], weight * exp2_flushed(d), y, sum), i, f.logits.rows, sums);
  }
  return untrusted;
}

}  // namespace icm
