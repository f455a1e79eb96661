// What the CPU's operators of losses with one term per row share.
#pragma once

#include "../row_loss_operators.h"
#include "tensors.h"
#include "workspace.h"

namespace icm {

struct RowLossesOnCpu : OnCpu {
  static Tensor empty(const Shape& sizes, ScalarType type, const Tensor&) {
    return new_contiguous(sizes, type);
  }
};

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
void spread_gradient(const RowGradient& given, int64_t rows, acc_t* out) {
  const double factor = term_factor(given.reduction, rows);
  for (int64_t i = 0; i < rows; ++i) out[i] = acc_t(double(given.grad.at<acc_t>(i)) * factor);
}

template <typename acc_t>
void fill_nan(const RowLoss& out) {
  for (const Tensor* t : {&out.loss, &out.stats}) fill_nan(data<acc_t>(*t), t->numel());
}

}  // namespace icm
