// What the passes of the Infinite Class Mixup loss share: walking tiles of rows, scratch, row weights,
// column accumulators (one vector per column, reduced at the end in a fixed order).
#pragma once

#include "icm_loss.h"
#include "tile.h"

namespace icm::ICM_ISA {

// Vectors of rows per tile, which share the loads of a column's weights and its accumulator: two, and four where
// there are registers for it and the tile is not too large for the caches (at 4096 x 1000, four vectors made the sums
// 5 to 14 % faster and the gradient, with a tile of its own, 17 to 27 % slower).
inline constexpr int kTileVectors = 2;
inline constexpr int kMostTileVectors = kVectorBytes == 64 ? 4 : 2;
inline constexpr int64_t kMostClassesOfWideSums = 2048, kMostClassesOfWideGradient = 512;

template <typename scalar_t>
ICM_INLINE bool is_wide(const Scores<scalar_t>& s, int64_t most_classes) {
  // By shape: scratch is allocated before the labels are read.
  return s.classes <= most_classes || 2 * s.columns.count <= most_classes;
}
// Columns per partial row sum: keeps the rounding of a row sum near sqrt(this) + columns/this units.
inline constexpr int64_t kBlock = 256;

template <int K>
struct TileVectors {
  static constexpr int count = K;
};

// Calls body(TileVectors<K>, row, valid rows) for the tiles of [begin, end).
template <typename scalar_t, typename Body>
ICM_INLINE void for_each_tile(const Scores<scalar_t>& s, int64_t most_classes, int64_t begin, int64_t end,
                              Body body) {
  constexpr int narrow = kLanes<acc_type<scalar_t>>, wide = kTileVectors * narrow,
                widest = kMostTileVectors * narrow;
  int64_t row = begin;
  if constexpr (widest > wide)
    if (is_wide(s, most_classes))
      for (; end - row > wide + narrow; row += widest)
        body(TileVectors<kMostTileVectors>{}, row, int(end - row < widest ? end - row : widest));
  for (; end - row > narrow; row += wide)
    body(TileVectors<kTileVectors>{}, row, int(end - row < wide ? end - row : wide));
  if (row < end) body(TileVectors<1>{}, row, int(end - row));
}

// The logits that the next tile needs, fetched a few lines at a time while the columns of this one are summed: 16 to 64
// rows are more streams than a processor fetches ahead by itself. (In the gradient the same made the loop over the
// columns slower by more than it saved.)
class RowsAhead {
 public:
  RowsAhead() = default;
  // `rows` rows of `length` elements, while `columns` columns are summed.
  template <typename T>
  RowsAhead(const T* first, int64_t rows, int64_t length, int64_t stride, int64_t columns)
      : at_(reinterpret_cast<const char*>(first)),
        length_(length * int64_t(sizeof(T))),
        stride_(stride * int64_t(sizeof(T))) {
    rows_ = rows * length_ < kLeastBytes ? 0 : rows;
    lines_ = (rows * (length_ / kLine + 1) + columns - 1) / (columns > 0 ? columns : 1);
  }

  // For one column.
  ICM_INLINE void fetch() {
    if (rows_ == 0) return;
    for (int64_t n = 0; n < lines_; ++n) {
      __builtin_prefetch(at_ + offset_, 0, 2);
      offset_ += kLine;
      if (offset_ < length_) continue;
      offset_ = 0;
      at_ += stride_;
      if (--rows_ == 0) return;
    }
  }

 private:
  static constexpr int64_t kLine = 64, kLeastBytes = 16 << 10;
  const char* at_ = nullptr;
  int64_t length_ = 0, stride_ = 0, rows_ = 0, lines_ = 0, offset_ = 0;
};

// The logits of the tile after the one that ends before `row`.
template <typename scalar_t>
ICM_INLINE RowsAhead next_logits(const Scores<scalar_t>& s, int64_t row, int64_t rows, int64_t end) {
  if (!reads_whole_rows(s) || row >= end) return {};
  return {s.logits + row * s.row_stride, end - row < rows ? end - row : rows, s.classes, s.row_stride,
          s.sorted.count};
}

template <typename acc_t, int K>
ICM_INLINE acc_t largest(const RowVec<acc_t, K>& m, int valid) {
  acc_t values[kTileRows<acc_t, K>];
  store_rows(m, values, kTileRows<acc_t, K>);
  acc_t result = values[0];
  for (int r = 1; r < valid; ++r) result = values[r] > result ? values[r] : result;
  return result;
}

// 1 for the valid rows, 0 beyond.
template <typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> valid_rows(int valid) {
  acc_t flags[kTileRows<acc_t, K>];
  for (int r = 0; r < kTileRows<acc_t, K>; ++r) flags[r] = r < valid ? acc_t(1) : acc_t(0);
  return load_rows<acc_t, K>(flags, kTileRows<acc_t, K>);
}

template <typename acc_t>
ICM_INLINE acc_t exp2_scalar(acc_t x) {
  return exp2<acc_t>(broadcast(x))[0];
}

// w_i = 2^((M_i - offset) * sigma); 0 for lanes beyond the valid rows.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE RowVec<acc_t, K> row_weights(const Scores<scalar_t>& s, const RowVec<acc_t, K>& m, acc_t offset,
                                        int valid) {
  const RowVec<acc_t, K> is_valid = valid_rows<acc_t, K>(valid);
  RowVec<acc_t, K> w;
  for (int k = 0; k < K; ++k) {
    const Vec<acc_t> weight = exp2<acc_t>((m.v[k] - offset) * s.sigma);
    // Selected: beyond the valid rows M is 0 and the weight may be infinite, which 0 would not undo.
    w.v[k] = select<acc_t>(is_valid.v[k] != acc_t(0), weight, Vec<acc_t>{});
  }
  return w;
}

template <typename acc_t>
ICM_INLINE void fill_columns(acc_t* accumulators, int64_t columns, acc_t value) {
  for (int64_t j = 0; j < columns; ++j) store(accumulators + j * kLanes<acc_t>, broadcast(value));
}

template <typename acc_t>
ICM_INLINE void reduce_columns(const acc_t* accumulators, int64_t columns, acc_t* column_sum) {
  constexpr int L = kLanes<acc_t>;
  int64_t j = 0;
  for (; j + L <= columns; j += L) {
    Vec<acc_t> square[L];
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) square[k] = load(accumulators + (j + k) * L);
    transpose<acc_t>(square);
#pragma GCC unroll 4
    for (int width = L / 2; width > 0; width /= 2)
#pragma GCC unroll 8
      for (int k = 0; k < width; ++k) square[k] += square[k + width];
    store(column_sum + j, square[0]);
  }
  for (; j < columns; ++j) column_sum[j] = sum_lanes<acc_t>(load(accumulators + j * L));
}

template <typename scalar_t>
ICM_INLINE int64_t size_of_tile(const Scores<scalar_t>& s) {
  const int vectors = is_wide(s, kMostClassesOfWideSums) ? kMostTileVectors : kTileVectors;
  return (s.columns.used + 1) * vectors * kLanes<acc_type<scalar_t>>;
}

template <typename scalar_t>
struct Scratch {
  using acc_t = acc_type<scalar_t>;
  acc_t* tile;
  // After a repair the same logits relative to the columns' offset; factored, the factors of first classes.
  acc_t* column_tile;
  acc_t* second;  // gradient tile or column accumulators
  acc_t* raw;     // sign * logits, for the gradient of the scale
  Scratch(const Scores<scalar_t>& s, acc_t* scratch) {
    const int64_t tile_size = size_of_tile(s);
    tile = scratch;
    column_tile = tile + tile_size;
    second = column_tile + tile_size;
    raw = second + tile_size;
  }
};

template <typename scalar_t>
inline int64_t scratch_size(const Scores<scalar_t>& s, bool gradient_of_scale) {
  using acc_t = acc_type<scalar_t>;
  const int64_t tile = size_of_tile(s);
  const int64_t columns = s.columns.count * kLanes<acc_t>;
  const int64_t gradient = gradient_of_scale ? 2 * tile : tile;
  return 2 * tile + (gradient > columns ? gradient : columns);
}

// The tiles of a repaired batch, in units of the logits: relative to each row's offset for the class axis, and
// to the columns' common offset for the pair axis.
template <typename scalar_t, typename acc_t, int K>
ICM_INLINE void load_repair_tiles(const Scores<scalar_t>& s, const Scratch<scalar_t>& buffers,
                                  const acc_t* row_offset, acc_t column_offset, int64_t row, int valid,
                                  acc_t* raw) {
  RowVec<acc_t, K> common;
  for (int k = 0; k < K; ++k) common.v[k] = broadcast(column_offset);
  const RowVec<acc_t, K> own = load_rows<acc_t, K>(row_offset + row, valid);
  load_distances<scalar_t, acc_t, K>(s, own, row, valid, buffers.tile, raw);
  load_distances<scalar_t, acc_t, K>(s, common, row, valid, buffers.column_tile, nullptr);
}

}  // namespace icm::ICM_ISA
