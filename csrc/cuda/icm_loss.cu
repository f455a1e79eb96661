// Operators icm_loss_fwd, icm_loss_bwd and icm_loss_grad on CUDA: checks, outputs and scratch. Division into blocks:
// icm_loss_launch.h; kernels: icm_loss_kernels.h; equations: ../icm_math.h.
//
// Values are read on the device only: an invalid target gives NaN, and is never used as an index. All memory comes
// from torch's allocator, nothing waits for the device, and every order of summation is fixed by the shapes and the
// device: the same bits from run to run.
#include "icm_loss_launch.h"
#include "loss_tensors.h"

namespace icm {
namespace {

using OptionalTensor = std::optional<Tensor>;

Logits logits_of(const char* op, const Tensor& logits, int64_t columns, int64_t diagonal,
                 const OptionalTensor& scale) {
  STD_TORCH_CHECK(logits.dim() == 2 && on_device(logits), op, ": expected logits of shape (B, C) on CUDA");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes < (int64_t(1) << 30), op, ": at most 2^30 classes");
  STD_TORCH_CHECK(columns < (int64_t(1) << 29), op, ": at most 2^29 columns");
  STD_TORCH_CHECK(diagonal >= 0 && rows <= columns && diagonal <= columns - rows, op,
                  ": expected the diagonal of ", rows, " rows to lie inside ", columns, " columns");
  STD_TORCH_CHECK(classes > 0 || columns == 0, op, ": expected at least one class");
  STD_TORCH_CHECK(!scale.has_value() || (scale->dim() == 0 && on_device(*scale)), op,
                  ": expected logit_scale of shape () on CUDA");
  return {data<const void>(logits),
          logit_type(op, logits),
          rows,
          classes,
          logits.stride(0),
          logits.stride(1),
          diagonal,
          scale.has_value() ? float_vector(op, "logit_scale", *scale, 1) : FloatVector{}};
}

template <typename acc_t>
LogSum<acc_t> log_sums(const Tensor& stats, int64_t count) {
  acc_t* first = data<acc_t>(stats);
  return {first, first + count, first + 2 * count};
}
template <typename acc_t>
RowSums<acc_t> row_sums(const Tensor& stats, int64_t count) {
  return {log_sums<acc_t>(stats, count), data<acc_t>(stats) + 3 * count};
}

template <typename acc_t>
Scratch<acc_t> take_scratch(Arena& arena, const ForwardChoice& choice, int64_t rows, int64_t columns,
                            int64_t classes) {
  Scratch<acc_t> scratch{};
  const int64_t blocks = choice.blocks();
  scratch.row_score = arena.take<acc_t>(rows);
  scratch.column_score = arena.take<acc_t>(rows);
  scratch.offset = arena.take<acc_t>(choice.run.workers);
  scratch.untrusted = arena.take<int32_t>(blocks);
  scratch.block_sums = arena.take<double>(2 * blocks);
  if (!choice.division.is_cluster)
    scratch.partial = arena.take<acc_t>(choice.run.workers * column_blocks(columns) * kWarp);
  if (!choice.division.in_shared)
    scratch.tiles = arena.take<acc_t>(blocks * Tile<acc_t, 2>::size(most_slots(columns, classes)));
  if (!choice.run.plans_inside) scratch.slot_of = arena.take<int32_t>(classes);
  return scratch;
}

struct ForwardTensors {
  Tensor loss, terms, row_stats, column_stats, plan;
};

ForwardTensors new_forward_tensors(const Tensor& logits, ScalarType acc, int64_t columns,
                                   Reduction reduction) {
  const int64_t rows = logits.size(0);
  const bool none = reduction == Reduction::kNone;
  return {none ? new_like(logits, {rows}, acc) : new_like(logits, {}, acc),
          none ? new_like(logits, {2, rows}, acc) : new_like(logits, {2}, acc),
          new_like(logits, {4, rows}, acc), new_like(logits, {3, columns}, acc),
          new_like(logits, {plan_words(columns)}, ScalarType::Int)};
}

// Fills the forward tensors, and `dlogits` if the choice is to give the gradient too.
template <typename acc_t>
void run_forward(const DeviceScope& device, const Logits& logits, const MixedLabels& labels,
                 const ForwardTensors& to, const Tensor& like, bool class_axis, bool pair_axis,
                 Reduction reduction, ForwardChoice choice, const Tensor* dlogits) {
  Forward<acc_t> f{};
  f.logits = logits;
  f.labels = labels;
  Arena plan(data<int32_t>(to.plan));
  f.plan = take_plan<acc_t>(plan, labels.count, logits.classes);
  STD_TORCH_CHECK(int64_t(plan.bytes()) <= 4 * plan_words(labels.count),
                  "icm_loss: the plan outgrew its tensor");
  f.rows = row_sums<acc_t>(to.row_stats, logits.rows);
  f.columns = log_sums<acc_t>(to.column_stats, labels.count);
  f.out = {data<acc_t>(to.loss), data<acc_t>(to.terms), class_axis, pair_axis, int32_t(reduction)};
  Arena counted(nullptr);
  take_scratch<acc_t>(counted, choice, logits.rows, labels.count, logits.classes);
  const Tensor workspace = new_like(like, {int64_t(counted.bytes())}, ScalarType::Byte);
  Arena arena(data<unsigned char>(workspace));
  f.scratch = take_scratch<acc_t>(arena, choice, logits.rows, labels.count, logits.classes);
  if (dlogits != nullptr) choice.run.gradient = {data<void>(*dlogits), logit_type("icm_loss_grad", *dlogits)};
  launch_forward(device, f, choice);
}

// A batch without rows: torch's own empty results, and no launch.
void fill_empty(const ForwardTensors& to, Reduction reduction) {
  torch::stable::zero_(const_cast<Tensor&>(to.column_stats));
  if (reduction == Reduction::kNone) return;
  const double value = reduction == Reduction::kMean ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  torch::stable::fill_(to.loss, value);
  torch::stable::fill_(to.terms, value);
}

template <typename acc_t>
ForwardTensors forward(const char* op, const Tensor& logits, const Tensor& y_a, const Tensor& y_b,
                       const Tensor& lam, const OptionalTensor& scale, int64_t diagonal, bool class_axis,
                       bool pair_axis, Reduction reduction) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, scale);
  const DeviceScope device(op, logits);
  const ForwardTensors to = new_forward_tensors(logits, kAccType<acc_t>, labels.count, reduction);
  if (from.rows == 0) {
    fill_empty(to, reduction);
    return to;
  }
  const auto choice =
      choose_forward<acc_t>(from.rows, labels.count, from.classes, labels.lam_stride == 0, device.limits());
  run_forward<acc_t>(device, from, labels, to, logits, class_axis, pair_axis, reduction, choice, nullptr);
  return to;
}

struct Gradients {
  Tensor dlogits, dscale;
};

template <typename acc_t>
void run_backward(const DeviceScope& device, const Logits& from, const MixedLabels& labels,
                  const ForwardTensors& saved, const FloatVector& grad_row, const FloatVector& grad_column,
                  bool class_axis, bool pair_axis, Reduction reduction, const Tensor& dlogits,
                  bool gradient_of_scale, acc_t* dscale) {
  const BackwardChoice choice =
      choose_backward<acc_t>(from.rows, labels.count, from.classes, labels.lam_stride == 0, device.limits());
  const int64_t columns = labels.count;
  Backward<acc_t> b{};
  b.logits = from;
  b.columns = columns;
  Arena plan(data<int32_t>(saved.plan));
  b.plan = take_plan<acc_t>(plan, columns, from.classes);
  b.rows = row_sums<acc_t>(saved.row_stats, from.rows);
  b.sums = log_sums<acc_t>(saved.column_stats, columns);
  b.lam = {labels.lam_float, labels.lam_double, labels.lam_stride};
  b.grad_row = grad_row;
  b.grad_column = grad_column;
  b.class_axis = class_axis;
  b.pair_axis = pair_axis;
  b.grad_factor = reduction == Reduction::kMean ? 1.0 / double(from.rows) : 1.0;
  b.out = {data<void>(dlogits), logit_type("icm_loss_bwd", dlogits)};
  b.gradient_of_scale = gradient_of_scale;
  b.dscale = dscale;
  const auto take = [&](Arena& arena) {
    b.alpha = arena.take<acc_t>(from.rows);
    b.own_loss = arena.take<acc_t>(from.rows);
    b.beta = arena.take<acc_t>(2 * columns);
    b.unit = arena.take<acc_t>(1);
    b.block_sums = arena.take<double>(2 * choice.blocks);
    if (!choice.division.in_shared)
      b.tiles = arena.take<acc_t>(choice.blocks * Tile<acc_t, 2>::size(most_slots(columns, from.classes)));
  };
  Arena counted(nullptr);
  take(counted);
  const Tensor workspace = new_like(dlogits, {int64_t(counted.bytes())}, ScalarType::Byte);
  Arena arena(data<unsigned char>(workspace));
  take(arena);
  launch_backward(device, b, choice);
}

template <typename acc_t>
Gradients backward(const char* op, const Tensor& grad_row, const Tensor& grad_column, const Tensor& logits,
                   const Tensor& y_a, const Tensor& y_b, const Tensor& lam, const OptionalTensor& scale,
                   const ForwardTensors& saved, int64_t diagonal, bool class_axis, bool pair_axis,
                   Reduction reduction, bool gradient_of_scale) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, scale);
  const int64_t n = labels.count;
  for (const Tensor* stats : {&saved.row_stats, &saved.column_stats})
    STD_TORCH_CHECK(stats->scalar_type() == kAccType<acc_t> && stats->is_contiguous() && on_device(*stats) &&
                        stats->numel() == (stats == &saved.row_stats ? 4 * from.rows : 3 * n),
                    op, ": expected the statistics that icm_loss_fwd returned for these logits");
  STD_TORCH_CHECK(saved.plan.scalar_type() == ScalarType::Int && saved.plan.is_contiguous() &&
                      on_device(saved.plan) && saved.plan.numel() == plan_words(n),
                  op, ": expected the plan that icm_loss_fwd returned");
  STD_TORCH_CHECK(on_device(grad_row) && on_device(grad_column), op, ": expected gradients on CUDA");
  const DeviceScope device(op, logits);
  Gradients to{new_like(logits, {from.rows, from.classes}, logits.scalar_type()),
               new_like(logits, {}, kAccType<acc_t>)};
  if (from.rows == 0) {
    torch::stable::fill_(to.dscale, 0.0);
    return to;
  }
  run_backward<acc_t>(device, from, labels, saved, float_vector(op, "grad_row", grad_row, from.rows),
                      float_vector(op, "grad_column", grad_column, n), class_axis, pair_axis, reduction,
                      to.dlogits, gradient_of_scale, data<acc_t>(to.dscale));
  return to;
}

// Loss and its gradient for an incoming gradient of 1, in the type of the sums: one launch for small batches.
template <typename acc_t>
std::tuple<Tensor, Tensor, Tensor> loss_and_gradient(const char* op, const Tensor& logits, const Tensor& y_a,
                                                     const Tensor& y_b, const Tensor& lam, int64_t diagonal,
                                                     bool class_axis, bool pair_axis, Reduction reduction) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, std::nullopt);
  STD_TORCH_CHECK(reduction != Reduction::kNone, op, ": expected a loss that is reduced");
  const DeviceScope device(op, logits);
  const ForwardTensors to = new_forward_tensors(logits, kAccType<acc_t>, labels.count, reduction);
  const Tensor dlogits = new_like(logits, {from.rows, from.classes}, kAccType<acc_t>);
  if (from.rows == 0) {
    fill_empty(to, reduction);
    return {to.loss, to.terms, dlogits};
  }
  auto choice =
      choose_forward<acc_t>(from.rows, labels.count, from.classes, labels.lam_stride == 0, device.limits());
  const bool one_launch = add_gradient<acc_t>(choice, labels.count, from.classes, device.limits());
  run_forward<acc_t>(device, from, labels, to, logits, class_axis, pair_axis, reduction, choice,
                     one_launch ? &dlogits : nullptr);
  if (!one_launch) {
    const Tensor one = new_like(logits, {}, kAccType<acc_t>), dscale = new_like(logits, {}, kAccType<acc_t>);
    torch::stable::fill_(one, 1.0);
    const FloatVector grad = float_vector(op, "grad", one, 1);
    run_backward<acc_t>(device, from, labels, to, grad, grad, class_axis, pair_axis, reduction, dlogits,
                        false, data<acc_t>(dscale));
  }
  return {to.loss, to.terms, dlogits};
}

// The type of sums is all that the kernels are compiled for: body(float{}) or body(double{}).
template <typename Body>
auto dispatch_sums(const Tensor& logits, const Body& body) {
  return logits.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> icm_loss_fwd_cuda(Tensor logits, Tensor y_a, Tensor y_b,
                                                                     Tensor lam, OptionalTensor logit_scale,
                                                                     int64_t diagonal, bool class_axis,
                                                                     bool pair_axis, int64_t reduction) {
  return dispatch_sums(logits, [&](auto zero) {
    const ForwardTensors to =
        forward<decltype(zero)>("icm_loss_fwd", logits, y_a, y_b, lam, logit_scale, diagonal, class_axis,
                                pair_axis, reduction_from("icm_loss_fwd", reduction));
    return std::make_tuple(to.loss, to.terms, to.row_stats, to.column_stats, to.plan);
  });
}

std::tuple<Tensor, Tensor> icm_loss_bwd_cuda(Tensor grad_row, Tensor grad_column, Tensor logits, Tensor y_a,
                                             Tensor y_b, Tensor lam, OptionalTensor logit_scale,
                                             Tensor row_stats, Tensor column_stats, Tensor plan,
                                             int64_t diagonal, bool class_axis, bool pair_axis,
                                             int64_t reduction, bool gradient_of_scale) {
  const ForwardTensors saved{row_stats, row_stats, row_stats, column_stats, plan};
  return dispatch_sums(logits, [&](auto zero) {
    const Gradients to = backward<decltype(zero)>(
        "icm_loss_bwd", grad_row, grad_column, logits, y_a, y_b, lam, logit_scale, saved, diagonal,
        class_axis, pair_axis, reduction_from("icm_loss_bwd", reduction), gradient_of_scale);
    return std::make_tuple(to.dlogits, to.dscale);
  });
}

std::tuple<Tensor, Tensor, Tensor> icm_loss_grad_cuda(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                                                      int64_t diagonal, bool class_axis, bool pair_axis,
                                                      int64_t reduction) {
  return dispatch_sums(logits, [&](auto zero) {
    return loss_and_gradient<decltype(zero)>("icm_loss_grad", logits, y_a, y_b, lam, diagonal, class_axis,
                                             pair_axis, reduction_from("icm_loss_grad", reduction));
  });
}

}  // namespace icm

ICM_CUDA_LIBRARY(m) {
  m.impl("icm_loss_fwd.cuda", TORCH_BOX(&icm::icm_loss_fwd_cuda));
  m.impl("icm_loss_bwd.cuda", TORCH_BOX(&icm::icm_loss_bwd_cuda));
  m.impl("icm_loss_grad.cuda", TORCH_BOX(&icm::icm_loss_grad_cuda));
}
