// What the kernels of the loss of given scores read and write. Plain data, no code: this header is shared by the
// operator (compiled once) and the kernels (compiled once per instruction set).
#pragma once

#include <cstdint>

#include "scalar_types.h"

namespace icm {

// A block of rows of the score matrix, contiguous; with t = scale * score. Row i owns column `diagonal + i`.
template <typename scalar_t>
struct ScoreBlock {
  using acc_t = acc_type<scalar_t>;
  scalar_t* scores;
  int64_t rows, columns;
  int64_t diagonal;
  acc_t scale;
};

// Of rows or of columns: the largest t, and the sum of exponentials relative to it. A NaN drops out of the largest and
// stays in the sum.
template <typename acc_t>
struct ScoreSums {
  acc_t *maximum, *sum;
};

template <typename acc_t>
struct ScoreFactors {
  const acc_t *row_maximum, *row_factor;        // (rows,)    the factor: incoming gradient / sum
  const acc_t *column_maximum, *column_factor;  // (columns,)
  const acc_t* own_loss;  // (rows,)    what the target subtracts: both incoming gradients
  bool class_axis, pair_axis;
};

template <typename scalar_t>
struct ScoreLossKernels {
  using acc_t = acc_type<scalar_t>;
  // 1. Sums of rows [begin, end), and of the columns over these rows; own: t of the row's own column. scratch:
  // (columns,).
  void (*sums)(const ScoreBlock<scalar_t>&, int64_t begin, int64_t end, ScoreSums<acc_t> rows, acc_t* own,
               ScoreSums<acc_t> columns, acc_t* scratch);
  // 2. Merges the columns' sums over other rows into `columns`.
  void (*merge)(int64_t columns, ScoreSums<acc_t> other, ScoreSums<acc_t> merged);
  // 3. Replaces the scores of rows [begin, end) by their gradient; dscale (rows,) or null: sum_j dt_ij score_ij.
  void (*gradient)(const ScoreBlock<scalar_t>&, int64_t begin, int64_t end, const ScoreFactors<acc_t>&,
                   acc_t* dscale);
};

}  // namespace icm
