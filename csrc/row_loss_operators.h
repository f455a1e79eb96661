// Operators of the losses with one term per row, for either device: checks and allocation (see loss_tensors.h).
//
// A device of mixup_cross_entropy has, beside owns(),
//   Tensor empty(const Shape& sizes, ScalarType, const Tensor& like)       contiguous
//   void terms(const SoftRows&, const RowLoss&)                            fills loss and stats
//   void gradient(const SoftRows&, const RowGradient&)                     fills dlogits
// and one of am_mixup_loss the same for RowMix.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "loss_tensors.h"
#include "row_loss_math.h"

namespace icm {

using Shape = std::vector<int64_t>;

struct SoftRows {
  const char* op;
  const Tensor& logits;
  MixedLabels labels;
  const void* class_weight;  // (C,) in the type of sums, or null
  double label_smoothing;
};

struct RowMix {
  const char* op;
  const Tensor& logits;
  PartnerLabels given;
  FloatVector rate;  // 0-d
};

struct RowLoss {
  Reduction reduction;
  const Tensor &loss, &stats;
};

struct RowGradient {
  Reduction reduction;
  FloatVector grad;  // of the loss
  const Tensor &stats, &dlogits;
};

template <typename acc_t>
RowStats<acc_t> row_stats_of(const Tensor& stats) {
  acc_t* const first = data<acc_t>(stats);
  return {first, first + stats.numel() / 2};
}

// Times the gradient of the loss: that of a row's term.
inline double term_factor(Reduction reduction, int64_t rows) {
  return reduction == Reduction::kMean ? 1.0 / double(rows) : 1.0;
}

template <typename Device>
SoftRows soft_rows(const char* op, const Tensor& logits, const Tensor& y_a, const Tensor& y_b,
                   const Tensor& lam, const std::optional<Tensor>& weight, double label_smoothing) {
  const MixedLabels labels = mixed_labels<Device>(op, y_a, y_b, lam);
  check_device<Device>(op, {&logits});
  STD_TORCH_CHECK(logits.dim() == 2, op, ": expected logits of shape (B, C)");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(labels.count == rows, op, ": expected ", rows, " labels, one per row of logits");
  STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, ": expected label_smoothing in [0, 1]");
  if (!weight.has_value()) return {op, logits, labels, nullptr, label_smoothing};
  check_device<Device>(op, {&*weight});
  STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == classes && weight->is_contiguous() &&
                      weight->scalar_type() == sum_type(logits),
                  op, ": expected a contiguous weight of shape (", classes,
                  ",), float64 for float64 logits, else float32");
  return {op, logits, labels, data<const void>(*weight), label_smoothing};
}

template <typename Device>
RowMix row_mix(const char* op, const Tensor& logits, const Tensor& index, const Tensor& rate,
               const Tensor& labels) {
  check_device<Device>(op, {&logits, &index, &rate, &labels});
  STD_TORCH_CHECK(logits.dim() == 2, op, ": expected logits of shape (B, C)");
  for (const Tensor* t : {&index, &labels})
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == logits.size(0) && t->scalar_type() == ScalarType::Long, op,
                    ": expected int64 index and labels of shape (", logits.size(0), ",)");
  return {op,
          logits,
          {data<const int64_t>(index), data<const int64_t>(labels), index.stride(0), labels.stride(0)},
          float_vector(op, "rate", rate, 1)};
}

// For the dispatcher: a kernel exists for this type of logits. Before anything is allocated.
inline void check_floating(const char* op, const Tensor& logits) {
  dispatch_floating_types<char, char>(op, logits, [](auto) {});
}

template <typename Device, typename Rows>
std::tuple<Tensor, Tensor> row_loss(const Rows& rows, Reduction reduction) {
  check_floating(rows.op, rows.logits);
  const int64_t count = rows.logits.size(0);
  const ScalarType type = sum_type(rows.logits);
  Tensor loss = Device::empty(reduction == Reduction::kNone ? Shape{count} : Shape{}, type, rows.logits);
  Tensor stats = Device::empty({2, count}, type, rows.logits);
  Device::terms(rows, {reduction, loss, stats});
  return std::make_tuple(loss, stats);
}

template <typename Device, typename Rows>
Tensor row_gradient(const Rows& rows, const Tensor& grad, const Tensor& stats, Reduction reduction) {
  check_floating(rows.op, rows.logits);
  check_device<Device>(rows.op, {&grad, &stats});
  const int64_t count = rows.logits.size(0);
  STD_TORCH_CHECK(
      stats.numel() == 2 * count && stats.scalar_type() == sum_type(rows.logits) && stats.is_contiguous(),
      rows.op, ": expected the statistics that the forward operator returned for these logits");
  const FloatVector incoming = float_vector(rows.op, "grad", grad, count);
  Tensor dlogits = Device::empty({count, rows.logits.size(1)}, rows.logits.scalar_type(), rows.logits);
  if (dlogits.numel() > 0) Device::gradient(rows, {reduction, incoming, stats, dlogits});
  return dlogits;
}

template <typename Device>
std::tuple<Tensor, Tensor> mixup_cross_entropy_fwd(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                                                   std::optional<Tensor> weight, double label_smoothing,
                                                   int64_t reduction) {
  constexpr const char* op = "mixup_cross_entropy_fwd";
  const Reduction how = reduction_from(op, reduction);
  return row_loss<Device>(soft_rows<Device>(op, logits, y_a, y_b, lam, weight, label_smoothing), how);
}

template <typename Device>
Tensor mixup_cross_entropy_bwd(Tensor grad, Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                               std::optional<Tensor> weight, Tensor row_stats, double label_smoothing,
                               int64_t reduction) {
  constexpr const char* op = "mixup_cross_entropy_bwd";
  const Reduction how = reduction_from(op, reduction);
  return row_gradient<Device>(soft_rows<Device>(op, logits, y_a, y_b, lam, weight, label_smoothing), grad,
                              row_stats, how);
}

template <typename Device>
std::tuple<Tensor, Tensor> am_mixup_loss_fwd(Tensor logits, Tensor index, Tensor rate, Tensor labels,
                                             int64_t reduction) {
  constexpr const char* op = "am_mixup_loss_fwd";
  const Reduction how = reduction_from(op, reduction);
  return row_loss<Device>(row_mix<Device>(op, logits, index, rate, labels), how);
}

template <typename Device>
Tensor am_mixup_loss_bwd(Tensor grad, Tensor logits, Tensor index, Tensor rate, Tensor labels,
                         Tensor row_stats, int64_t reduction) {
  constexpr const char* op = "am_mixup_loss_bwd";
  const Reduction how = reduction_from(op, reduction);
  return row_gradient<Device>(row_mix<Device>(op, logits, index, rate, labels), grad, row_stats, how);
}

}  // namespace icm
