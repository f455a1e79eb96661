// Operators icm_loss_fwd, icm_loss_bwd and icm_loss_grad on CUDA: checks, outputs and scratch. Division into blocks:
// icm_loss/launch.h; kernels: icm_loss/kernels.h; equations: ../icm_math.h.
//
// Values are read on the device only: an invalid target gives NaN, and is never used as an index. All memory comes
// from torch's allocator, nothing waits for the device, and every order of summation is fixed by the shapes and the
// device: the same bits from run to run.
#include "icm_loss/launch.h"
#include "icm_loss/tensors.h"

namespace icm {
namespace {

// What the forward pass hands to the backward pass.
template <typename acc_t>
struct Statistics {
  RowSums<acc_t> rows;
  LogSum<acc_t> columns;
  int32_t* plan;

  Statistics(acc_t* row_stats, acc_t* column_stats, int32_t* plan_memory, int64_t row_count,
             int64_t column_count)
      : rows{{row_stats, row_stats + row_count, row_stats + 2 * row_count}, row_stats + 3 * row_count},
        columns{column_stats, column_stats + column_count, column_stats + 2 * column_count},
        plan(plan_memory) {}
  Statistics(const Tensor& row_stats, const Tensor& column_stats, const Tensor& plan_tensor)
      : Statistics(data<acc_t>(row_stats), data<acc_t>(column_stats), data<int32_t>(plan_tensor),
                   row_stats.size(1), column_stats.size(1)) {}
  Statistics(Arena& arena, int64_t row_count, int64_t column_count)
      : Statistics(arena.take<acc_t>(4 * row_count), arena.take<acc_t>(3 * column_count),
                   arena.take<int32_t>(plan_words(column_count)), row_count, column_count) {}
};

template <typename acc_t>
Plan<acc_t> plan_in(int32_t* memory, int64_t columns, int64_t classes) {
  Arena arena(memory);
  const Plan<acc_t> plan = take_plan<acc_t>(arena, columns, classes);
  STD_TORCH_CHECK(int64_t(arena.bytes()) <= 4 * plan_words(columns), "icm_loss: the plan outgrew its tensor");
  return plan;
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
  return {none ? new_contiguous({rows}, acc, logits) : new_contiguous({}, acc, logits),
          none ? new_contiguous({2, rows}, acc, logits) : new_contiguous({2}, acc, logits),
          new_contiguous({4, rows}, acc, logits), new_contiguous({3, columns}, acc, logits),
          new_contiguous({plan_words(columns)}, ScalarType::Int, logits)};
}

// Memory for the length of a call: take(arena) is called twice, once to count.
template <typename Take>
Tensor allocate(const Tensor& like, const Take& take) {
  Arena counted(nullptr);
  take(counted);
  const Tensor memory = new_contiguous({int64_t(counted.bytes())}, ScalarType::Byte, like);
  Arena arena(data<unsigned char>(memory));
  take(arena);
  return memory;
}

struct Axes {
  bool class_axis, pair_axis;
};

// Fills loss, terms and statistics, and `dlogits` if the choice is to give the gradient too.
template <typename acc_t>
void run_forward(const DeviceScope& device, const Logits& logits, const MixedLabels& labels,
                 const Statistics<acc_t>& statistics, const Scratch<acc_t>& scratch, const Tensor& loss,
                 const Tensor& terms, Axes axes, Reduction reduction, ForwardChoice choice,
                 const Tensor* dlogits) {
  const Plan<acc_t> plan = plan_in<acc_t>(statistics.plan, labels.count, logits.classes);
  const LossOutput<acc_t> out{data<acc_t>(loss), data<acc_t>(terms), axes.class_axis, axes.pair_axis,
                              int32_t(reduction)};
  if (dlogits != nullptr) choice.run.gradient = {data<void>(*dlogits), logit_type("icm_loss_grad", *dlogits)};
  launch_forward(device,
                 Forward<acc_t>{logits, labels, plan, statistics.rows, statistics.columns, out, scratch},
                 choice);
}

// A batch without rows: torch's own empty results, and no launch.
void fill_empty(const Tensor& loss, const Tensor& terms, Reduction reduction) {
  if (reduction == Reduction::kNone) return;
  const double value = reduction == Reduction::kMean ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  torch::stable::fill_(loss, value);
  torch::stable::fill_(terms, value);
}

template <typename acc_t>
ForwardTensors forward(const char* op, const Tensor& logits, const Tensor& y_a, const Tensor& y_b,
                       const Tensor& lam, const OptionalTensor& scale, int64_t diagonal, Axes axes,
                       Reduction reduction) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, scale);
  const DeviceScope device(op, logits);
  const ForwardTensors to = new_forward_tensors(logits, kAccType<acc_t>, labels.count, reduction);
  if (from.rows == 0) {
    fill_empty(to.loss, to.terms, reduction);
    torch::stable::zero_(const_cast<Tensor&>(to.column_stats));
    torch::stable::zero_(const_cast<Tensor&>(to.plan));
    return to;
  }
  const auto choice = choose_forward<acc_t>(problem_of(from, labels), device);
  Scratch<acc_t> scratch;
  const Tensor workspace = allocate(logits, [&](Arena& arena) {
    scratch = take_scratch<acc_t>(arena, choice, from.rows, labels.count, from.classes);
  });
  run_forward(device, from, labels, Statistics<acc_t>(to.row_stats, to.column_stats, to.plan), scratch,
              to.loss, to.terms, axes, reduction, choice, nullptr);
  return to;
}

struct Gradients {
  Tensor dlogits, dscale;
};

template <typename acc_t>
void run_backward(const DeviceScope& device, const Logits& from, const MixedLabels& labels,
                  const Statistics<acc_t>& statistics, const FloatVector& grad_row,
                  const FloatVector& grad_column, Axes axes, Reduction reduction, const Tensor& dlogits,
                  bool gradient_of_scale, acc_t* dscale) {
  const int64_t columns = labels.count;
  const BackwardChoice choice = choose_backward<acc_t>(problem_of(from, labels), device.limits());
  Backward<acc_t> b{};
  b.logits = from;
  b.columns = columns;
  b.plan = plan_in<acc_t>(statistics.plan, columns, from.classes);
  b.rows = statistics.rows;
  b.sums = statistics.columns;
  b.lam = {labels.lam_float, labels.lam_double, labels.lam_stride};
  b.grad_row = grad_row;
  b.grad_column = grad_column;
  b.class_axis = axes.class_axis;
  b.pair_axis = axes.pair_axis;
  b.grad_factor = reduction == Reduction::kMean ? 1.0 / double(from.rows) : 1.0;
  b.out = {data<void>(dlogits), logit_type("icm_loss_bwd", dlogits)};
  b.gradient_of_scale = gradient_of_scale;
  b.dscale = dscale;
  const Tensor workspace = allocate(dlogits, [&](Arena& arena) {
    b.alpha = arena.take<acc_t>(from.rows);
    b.own_loss = arena.take<acc_t>(from.rows);
    b.beta = arena.take<acc_t>(2 * columns);
    b.unit = arena.take<acc_t>(1);
    b.block_sums = arena.take<double>(2 * choice.blocks);
    if (!choice.division.in_shared)
      b.tiles = arena.take<acc_t>(choice.blocks * Tile<acc_t, 2>::size(most_slots(columns, from.classes)));
  });
  launch_backward(device, b, choice);
}

template <typename acc_t>
Gradients backward(const char* op, const Tensor& grad_row, const Tensor& grad_column, const Tensor& logits,
                   const Tensor& y_a, const Tensor& y_b, const Tensor& lam, const OptionalTensor& scale,
                   const Tensor& row_stats, const Tensor& column_stats, const Tensor& plan, int64_t diagonal,
                   Axes axes, Reduction reduction, bool gradient_of_scale) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, scale);
  const int64_t n = labels.count;
  const auto is_statistic = [](const Tensor& stats, int64_t first, int64_t second) {
    return stats.dim() == 2 && stats.size(0) == first && stats.size(1) == second && on_device(stats) &&
           stats.scalar_type() == kAccType<acc_t> && stats.is_contiguous();
  };
  STD_TORCH_CHECK(is_statistic(row_stats, 4, from.rows) && is_statistic(column_stats, 3, n), op,
                  ": expected the statistics that icm_loss_fwd returned for these logits");
  STD_TORCH_CHECK(plan.scalar_type() == ScalarType::Int && plan.is_contiguous() && on_device(plan) &&
                      plan.numel() == plan_words(n) && reinterpret_cast<uintptr_t>(plan.data_ptr()) % 16 == 0,
                  op, ": expected the plan that icm_loss_fwd returned");
  check_device<OnDevice>(op, {&grad_row, &grad_column});
  const DeviceScope device(op, logits);
  const Gradients to{new_contiguous({from.rows, from.classes}, logits.scalar_type(), logits),
                     new_contiguous({}, kAccType<acc_t>, logits)};
  if (from.rows == 0) {
    torch::stable::fill_(to.dscale, 0.0);
    return to;
  }
  run_backward(device, from, labels, Statistics<acc_t>(row_stats, column_stats, plan),
               float_vector(op, "grad_row", grad_row, from.rows),
               float_vector(op, "grad_column", grad_column, n), axes, reduction, to.dlogits,
               gradient_of_scale, data<acc_t>(to.dscale));
  return to;
}

// Loss and its gradient for an incoming gradient of 1, in the type of the sums: one launch for small batches.
template <typename acc_t>
std::tuple<Tensor, Tensor, Tensor> loss_and_gradient(const char* op, const Tensor& logits, const Tensor& y_a,
                                                     const Tensor& y_b, const Tensor& lam, int64_t diagonal,
                                                     Axes axes, Reduction reduction) {
  const MixedLabels labels = mixed_labels<OnDevice>(op, y_a, y_b, lam);
  const Logits from = logits_of(op, logits, labels.count, diagonal, std::nullopt);
  STD_TORCH_CHECK(reduction != Reduction::kNone, op, ": expected a loss that is reduced");
  const DeviceScope device(op, logits);
  const Tensor loss = new_contiguous({}, kAccType<acc_t>, logits),
               terms = new_contiguous({2}, kAccType<acc_t>, logits),
               dlogits = new_contiguous({from.rows, from.classes}, kAccType<acc_t>, logits);
  if (from.rows == 0) {
    fill_empty(loss, terms, reduction);
    return {loss, terms, dlogits};
  }
  const Problem problem = problem_of(from, labels);
  auto choice = choose_forward<acc_t>(problem, device);
  const bool one_launch = add_gradient<acc_t>(choice, problem, device.limits());
  std::optional<Statistics<acc_t>> statistics;
  Scratch<acc_t> scratch;
  acc_t* dscale;
  const Tensor workspace = allocate(logits, [&](Arena& arena) {
    statistics.emplace(arena, from.rows, labels.count);
    scratch = take_scratch<acc_t>(arena, choice, from.rows, labels.count, from.classes);
    dscale = arena.take<acc_t>(1);
  });
  run_forward(device, from, labels, *statistics, scratch, loss, terms, axes, reduction, choice,
              one_launch ? &dlogits : nullptr);
  if (!one_launch) {
    const Tensor one = new_contiguous({}, kAccType<acc_t>, logits);
    torch::stable::fill_(one, 1.0);
    const FloatVector grad = float_vector(op, "grad", one, 1);
    run_backward(device, from, labels, *statistics, grad, grad, axes, reduction, dlogits, false, dscale);
  }
  return {loss, terms, dlogits};
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
        forward<decltype(zero)>("icm_loss_fwd", logits, y_a, y_b, lam, logit_scale, diagonal,
                                {class_axis, pair_axis}, reduction_from("icm_loss_fwd", reduction));
    return std::make_tuple(to.loss, to.terms, to.row_stats, to.column_stats, to.plan);
  });
}

std::tuple<Tensor, Tensor> icm_loss_bwd_cuda(Tensor grad_row, Tensor grad_column, Tensor logits, Tensor y_a,
                                             Tensor y_b, Tensor lam, OptionalTensor logit_scale,
                                             Tensor row_stats, Tensor column_stats, Tensor plan,
                                             int64_t diagonal, bool class_axis, bool pair_axis,
                                             int64_t reduction, bool gradient_of_scale) {
  return dispatch_sums(logits, [&](auto zero) {
    const Gradients to =
        backward<decltype(zero)>("icm_loss_bwd", grad_row, grad_column, logits, y_a, y_b, lam, logit_scale,
                                 row_stats, column_stats, plan, diagonal, {class_axis, pair_axis},
                                 reduction_from("icm_loss_bwd", reduction), gradient_of_scale);
    return std::make_tuple(to.dlogits, to.dscale);
  });
}

std::tuple<Tensor, Tensor, Tensor> icm_loss_grad_cuda(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                                                      int64_t diagonal, bool class_axis, bool pair_axis,
                                                      int64_t reduction) {
  return dispatch_sums(logits, [&](auto zero) {
    return loss_and_gradient<decltype(zero)>("icm_loss_grad", logits, y_a, y_b, lam, diagonal,
                                             {class_axis, pair_axis},
                                             reduction_from("icm_loss_grad", reduction));
  });
}

}  // namespace icm

ICM_CUDA_LIBRARY(m) {
  m.impl("icm_loss_fwd.cuda", TORCH_BOX(&icm::icm_loss_fwd_cuda));
  m.impl("icm_loss_bwd.cuda", TORCH_BOX(&icm::icm_loss_bwd_cuda));
  m.impl("icm_loss_grad.cuda", TORCH_BOX(&icm::icm_loss_grad_cuda));
}
