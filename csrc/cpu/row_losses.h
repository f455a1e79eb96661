// What the operators of losses with one term per row share.
#pragma once

#include "tensors.h"
#include "workspace.h"

namespace icm {

inline void check_logits(const char* op, const Tensor& logits) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.is_cpu(), op, ": expected logits of shape (B, C) on the CPU");
}

// The (2, rows) statistics that the forward operator returned: maximum and sum of exponentials.
template <typename acc_t>
void check_row_stats(const char* op, const Tensor& row_stats, int64_t rows) {
  STD_TORCH_CHECK(row_stats.numel() == 2 * rows && row_stats.scalar_type() == kScalarType<acc_t> &&
                      row_stats.is_contiguous() && row_stats.is_cpu(),
                  op, ": expected the statistics that the forward operator returned for these logits");
}

template <typename acc_t>
Tensor new_loss(int64_t rows, Reduction reduction) {
  return reduction == Reduction::kNone ? new_tensor({rows}, kScalarType<acc_t>)
                                       : new_tensor({}, kScalarType<acc_t>);
}

// Mean (NaN of no rows), sum or the terms themselves; added in double, in order.
template <typename acc_t>
void reduce_terms(const acc_t* terms, int64_t rows, Reduction reduction, const Tensor& loss) {
  acc_t* out = data<acc_t>(loss);
  if (reduction == Reduction::kNone) {
    std::copy(terms, terms + rows, out);
    return;
  }
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += double(terms[i]);
  *out = acc_t(reduction == Reduction::kMean ? sum / double(rows) : sum);
}

// The gradient of every term from that of the loss.
template <typename acc_t>
void spread_gradient(Broadcast<acc_t> grad, int64_t rows, Reduction reduction, acc_t* out) {
  const double factor = reduction == Reduction::kMean ? 1.0 / double(rows) : 1.0;
  for (int64_t i = 0; i < rows; ++i) out[i] = acc_t(double(grad[i]) * factor);
}

}  // namespace icm
