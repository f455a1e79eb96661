// What the Infinite Class Mixup kernels read and write. Plain data, no code: this header is shared by
// the operator (compiled once) and the kernels (compiled once per instruction set).
//
// Rows are images, columns are mixed classes (classifiers): the class axis is a softmax along a row,
// the pair axis a softmax along a column. The matrix may be rectangular (rows of one process, columns
// of all): image i's own class is column `diagonal + i`.
#pragma once

#include <cstdint>

#include "scalar_types.h"

namespace icm {

// Mixed classes, one per column. Classes that no column uses take no part; used class u is
// `present[u]`, and a column names classes by u. A pure class has w_a = 1 and names slot `used`, which
// holds zeros, with w_b = 0.
template <typename acc_t>
struct Columns {
  int64_t count;
  const int32_t* slot_a;  // (count,)
  const int32_t* slot_b;  // (count,)
  const acc_t* w_a;       // (count,)
  const acc_t* w_b;       // (count,)
  int64_t used;
  const int64_t* present;  // (used,) ascending
  const int32_t* slot_of;  // (classes,) slot of a class, or -1; null when every class is used
};

// The columns sorted by their first class, so that it is read, and its gradient written, once for all of them. Of many
// classes, those with equally many columns stand together, so that a processor guesses where the next one begins. Where
// sorting would not pay each column is a first class of its own.
//
// Of a batch with one lam the columns may be `factored`: exponentials are products, 2^(w_a T_a) 2^(w_b T_b), two
// exponentials per class instead of one per column, and equal columns are one. Their pure classes are pairs of a
// class with itself, or, where the weight is 1, with slot `used`.
template <typename acc_t>
struct SortedColumns {
  int64_t count;
  const int32_t *slot_a, *slot_b;  // (count,)
  const acc_t *w_a, *w_b;          // (count,); factored: w_a is how many columns are one here
  int64_t firsts;
  const int32_t* begin;      // (firsts + 1,) the columns of each first class
  const int32_t* of_column;  // (columns,) where each column of the batch stands
  bool factored;
  acc_t factor_a, factor_b;  // factored: the weights of all
};

template <typename scalar_t>
struct Scores {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* logits;
  int64_t rows, classes;
  int64_t row_stride, class_stride;
  Columns<acc_t> columns;
  SortedColumns<acc_t> sorted;
  int64_t diagonal;
  acc_t scale;  // multiplies the logits
  acc_t sign;   // -1 for a negative scale, else 1
  acc_t sigma;  // |scale| * log2(e)
};

// log2 of a sum of exponentials is (offset + shift) * sigma + log2(sum). All columns have the same offset.
// Every shift is 0 unless the batch was repaired.
template <typename acc_t>
struct LogSum {
  acc_t* offset;  // in units of sign * logits, as is the shift
  acc_t* shift;
  acc_t* sum;
};

// Statistics of the rows. `weight` is w_i, by which a row's exponentials enter the column sums: kept, so
// that the forward and the backward pass multiply by the same number. NaN marks a repaired batch: its shifts
// cannot, they may all be 0.
template <typename acc_t>
struct RowSums : LogSum<acc_t> {
  acc_t* weight;
};

// Each image's score by its own class, relative to the offset of its row and to that of its column: in base-2
// units (and the row's only), or in units of the logits after a repair. `exponential` is that of the row's, with the
// bits that it has in the sums; not after a repair.
template <typename acc_t>
struct Diagonal {
  acc_t* row;
  acc_t* column;
  acc_t* exponential;
};

template <typename scalar_t>
struct Gradient {
  using acc_t = acc_type<scalar_t>;
  const acc_t* row_factor;     // (rows,)  incoming gradient of the row term / row sum
  const acc_t* column_factor;  // likewise, of the sorted columns; (columns,) after a repair
  const acc_t* diagonal_loss;  // (rows,)  what the target subtracts: both incoming gradients
  scalar_t* dlogits;           // (rows, classes) contiguous
  acc_t* dscale;               // (rows,) or null: sum_c dS'[i,c] S[i,c]
  acc_t unit;                  // a power of two that the factors were divided by
  bool class_axis, pair_axis;
  bool repaired;
};

template <typename scalar_t>
struct IcmLossKernels {
  using acc_t = acc_type<scalar_t>;
  int32_t tile_rows;  // rows of the largest tile
  // Elements of scratch that one thread needs, for any of the passes.
  int64_t (*scratch_size)(const Scores<scalar_t>&, bool gradient_of_scale);
  // 1. Row sums, and the sums of the sorted columns, of rows [begin, end), relative to *column_offset.
  void (*sums)(const Scores<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch, RowSums<acc_t> rows,
               Diagonal<acc_t> diagonal, acc_t* column_sum, acc_t* column_offset);
  // 2. Repair: exact maxima of rows and columns.
  void (*maxima)(const Scores<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch, RowSums<acc_t> rows,
                 acc_t column_offset, acc_t* column_shift);
  // 3. Repair: sums relative to those maxima, and the diagonal.
  void (*shifted_sums)(const Scores<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch,
                       RowSums<acc_t> rows, LogSum<acc_t> columns, Diagonal<acc_t> diagonal,
                       acc_t* column_sum);
  // 4. Row and column terms of the loss of rows [begin, end), in nats.
  void (*terms)(const Scores<scalar_t>&, int64_t begin, int64_t end, bool repaired, RowSums<acc_t> rows,
                LogSum<acc_t> columns, Diagonal<acc_t> diagonal, acc_t* row_term, acc_t* column_term);
  // 5. Gradient of rows [begin, end).
  void (*gradient)(const Scores<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch, RowSums<acc_t> rows,
                   LogSum<acc_t> columns, const Gradient<scalar_t>&);
};

}  // namespace icm
