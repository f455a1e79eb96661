// Operators mixup_cross_entropy_fwd and mixup_cross_entropy_bwd on the CPU: checks, memory and threads.
// The arithmetic is in kernels/mixup_cross_entropy.cpp.
#include "kernels/mixup_cross_entropy.h"

#include "instruction_set.h"
#include "row_losses.h"

namespace icm {

ICM_DECLARE_KERNELS(MixupCrossEntropyKernels, mixup_cross_entropy)

namespace {

// Logits and targets of one call, ready for the kernels, and the memory and threads of its pass.
template <typename scalar_t>
class Pass {
  using acc_t = acc_type<scalar_t>;

 public:
  Pass(const char* op, const Tensor& logits, const MixedLabels& labels, const std::optional<Tensor>& weight,
       double label_smoothing) {
    check_logits(op, logits);
    const int64_t rows = logits.size(0), classes = logits.size(1);
    STD_TORCH_CHECK(labels.count == rows, op, ": expected ", rows, " labels, one per row of logits");
    STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, ": expected label_smoothing in [0, 1]");
    const acc_t* class_weight = nullptr;
    if (weight.has_value()) {
      STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == classes && weight->is_contiguous() &&
                          weight->is_cpu() && weight->scalar_type() == kScalarType<acc_t>,
                      op, ": expected a contiguous weight of shape (", classes,
                      ",) on the CPU, float64 for float64 logits, else float32");
      class_weight = data<const acc_t>(*weight);
    }
    const bool strided = logits.stride(1) != 1;
    scratch_size_ = strided ? round_up(classes, 16) : 0;
    threads_ = thread_count(rows, rows * classes);
    workspace_.reserve(rows, &class_a_);
    workspace_.reserve(rows, &class_b_);
    workspace_.reserve(rows, &weight_a_);
    workspace_.reserve(rows, &weight_b_);
    workspace_.reserve(rows, &per_row_);
    workspace_.reserve(label_smoothing > 0 ? round_up(classes, 16) : 0, &smoothing_);
    workspace_.reserve(threads_ * scratch_size_, &scratch_);
    workspace_.allocate();
    targets_ = {data<const scalar_t>(logits),
                rows,
                classes,
                logits.stride(0),
                logits.stride(1),
                class_a_,
                class_b_,
                weight_a_,
                weight_b_,
                nullptr,
                acc_t(0)};
    valid_ = prepare(labels, class_weight, label_smoothing);
    if (label_smoothing > 0) smooth(class_weight, label_smoothing);
  }

  bool valid_target() const { return valid_; }
  const SoftTargets<scalar_t>& targets() const { return targets_; }
  acc_t* per_row() const { return per_row_; }  // (rows,) for the terms or their gradient

  template <typename Body>
  void for_each_range(const Body& body) const {
    parallel_ranges(threads_, targets_.rows, [&](int64_t thread, int64_t begin, int64_t end) {
      body(begin, end, scratch_ + thread * scratch_size_);
    });
  }

 private:
  // Returns false when the target is invalid.
  bool prepare(const MixedLabels& labels, const acc_t* class_weight, double label_smoothing) {
    const acc_t kept = acc_t(1.0 - label_smoothing);
    for (int64_t i = 0; i < labels.count; ++i) {
      const MixedClass<acc_t> mixed = mixed_class<acc_t>(labels, i, targets_.classes);
      if (!mixed.valid) return false;
      class_a_[i] = mixed.a;
      class_b_[i] = mixed.b;
      weight_a_[i] = kept * mixed.w_a * (class_weight == nullptr ? acc_t(1) : class_weight[mixed.a]);
      weight_b_[i] = kept * mixed.w_b * (class_weight == nullptr ? acc_t(1) : class_weight[mixed.b]);
    }
    return true;
  }

  void smooth(const acc_t* class_weight, double label_smoothing) {
    const int64_t classes = targets_.classes;
    const double share = label_smoothing / double(classes);
    double total = 0;
    fill(smoothing_, round_up(classes, 16), acc_t(0));
    for (int64_t c = 0; c < classes; ++c) {
      smoothing_[c] = acc_t(share * (class_weight == nullptr ? 1.0 : double(class_weight[c])));
      total += double(smoothing_[c]);
    }
    targets_.smoothing = smoothing_;
    targets_.total_smoothing = acc_t(total);
  }

  Workspace workspace_;
  SoftTargets<scalar_t> targets_;
  int64_t *class_a_, *class_b_;
  acc_t *weight_a_, *weight_b_, *per_row_, *smoothing_, *scratch_;
  int64_t threads_, scratch_size_;
  bool valid_;
};

template <typename acc_t>
RowStats<acc_t> row_stats_of(const Tensor& stats, int64_t rows) {
  return {data<acc_t>(stats), data<acc_t>(stats) + rows};
}

template <typename scalar_t>
auto forward(const Tensor& logits, const MixedLabels& labels, const std::optional<Tensor>& weight,
             double label_smoothing, Reduction reduction) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass("mixup_cross_entropy_fwd", logits, labels, weight, label_smoothing);
  const int64_t rows = labels.count;
  Tensor loss = new_loss<acc_t>(rows, reduction);
  Tensor stats = new_tensor({2, rows}, kScalarType<acc_t>);
  if (!pass.valid_target()) {
    for (const Tensor& t : {loss, stats}) fill_nan(data<acc_t>(t), t.numel());
    return std::make_tuple(loss, stats);
  }
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    mixup_cross_entropy_kernels<scalar_t>().terms(pass.targets(), begin, end, scratch,
                                                  row_stats_of<acc_t>(stats, rows), pass.per_row());
  });
  reduce_terms(pass.per_row(), rows, reduction, loss);
  return std::make_tuple(loss, stats);
}

template <typename scalar_t>
Tensor backward(const Tensor& grad, const Tensor& logits, const MixedLabels& labels,
                const std::optional<Tensor>& weight, const Tensor& row_stats, double label_smoothing,
                Reduction reduction) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* op = "mixup_cross_entropy_bwd";
  const Pass<scalar_t> pass(op, logits, labels, weight, label_smoothing);
  const int64_t rows = labels.count;
  check_row_stats<acc_t>(op, row_stats, rows);
  const auto incoming = broadcast_vector<acc_t>(op, "grad", grad, rows);
  Tensor dlogits = new_tensor({rows, pass.targets().classes}, logits.scalar_type());
  scalar_t* out = data<scalar_t>(dlogits);
  if (!pass.valid_target()) {
    fill_nan(out, dlogits.numel());
    return dlogits;
  }
  spread_gradient(incoming, rows, reduction, pass.per_row());
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    mixup_cross_entropy_kernels<scalar_t>().gradient(
        pass.targets(), begin, end, scratch, row_stats_of<acc_t>(row_stats, rows), pass.per_row(), out);
  });
  return dlogits;
}

}  // namespace

std::tuple<Tensor, Tensor> mixup_cross_entropy_fwd_cpu(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                                                       std::optional<Tensor> weight, double label_smoothing,
                                                       int64_t reduction) {
  constexpr const char* op = "mixup_cross_entropy_fwd";
  const Reduction how = reduction_from(op, reduction);
  const MixedLabels labels = mixed_labels(op, y_a, y_b, lam);
  return dispatch_floating(op, logits, [&](auto zero) {
    return forward<decltype(zero)>(logits, labels, weight, label_smoothing, how);
  });
}

Tensor mixup_cross_entropy_bwd_cpu(Tensor grad, Tensor logits, Tensor y_a, Tensor y_b, Tensor lam,
                                   std::optional<Tensor> weight, Tensor row_stats, double label_smoothing,
                                   int64_t reduction) {
  constexpr const char* op = "mixup_cross_entropy_bwd";
  const Reduction how = reduction_from(op, reduction);
  const MixedLabels labels = mixed_labels(op, y_a, y_b, lam);
  return dispatch_floating(op, logits, [&](auto zero) {
    return backward<decltype(zero)>(grad, logits, labels, weight, row_stats, label_smoothing, how);
  });
}

}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("mixup_cross_entropy_fwd.cpu", TORCH_BOX(&icm::mixup_cross_entropy_fwd_cpu));
  m.impl("mixup_cross_entropy_bwd.cpu", TORCH_BOX(&icm::mixup_cross_entropy_bwd_cpu));
}
