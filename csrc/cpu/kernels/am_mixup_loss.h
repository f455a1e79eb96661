// What the Asymptotic Midpoint Mixup kernels read and write. Plain data, no code: this header is shared
// by the operator (compiled once) and the kernels (compiled once per instruction set).
#pragma once

#include <cstdint>

#include "../../row_loss_math.h"
#include "scalar_types.h"

namespace icm {

// Row i mixes with row partner[i] and is to be class label[i]. own_weight[i] is the rate, or exactly 1
// where the partner takes no part; a weight of exactly 0 leaves the row itself out.
template <typename scalar_t>
struct MixedRows {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* logits;
  int64_t rows, classes;
  int64_t row_stride, class_stride;
  const int64_t* partner;   // (rows,)
  const int64_t* label;     // (rows,)
  const acc_t* own_weight;  // (rows,)
};

// Rows that are mixed INTO others: row j is the partner of source[first[j]] .. source[first[j + 1] - 1],
// in ascending order, wherever the partner takes part and is not the row itself.
struct PartnerOf {
  const int64_t* first;   // (rows + 1,)
  const int64_t* source;  // (first[rows],)
};

template <typename scalar_t>
struct AmMixupLossKernels {
  using acc_t = acc_type<scalar_t>;
  // Elements of scratch that one thread needs.
  int64_t (*scratch_size)(const MixedRows<scalar_t>&);
  // 1. Statistics and loss terms, in nats, of mixed rows [begin, end).
  void (*terms)(const MixedRows<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch, RowStats<acc_t> stats,
                acc_t* term);
  // 2. Gradient of rows [begin, end) of the logits; `grad` (rows,) is that of the terms, dlogits is
  // contiguous.
  void (*gradient)(const MixedRows<scalar_t>&, PartnerOf, int64_t begin, int64_t end, acc_t* scratch,
                   RowStats<acc_t> stats, const acc_t* grad, scalar_t* dlogits);
};

}  // namespace icm
