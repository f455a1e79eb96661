// Operators mixup_cross_entropy_fwd and mixup_cross_entropy_bwd on the CPU: memory and threads. Checks and allocation
// are in ../row_loss_operators.h, the arithmetic in kernels/mixup_cross_entropy.cpp.
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
  explicit Pass(const SoftRows& given) {
    const Tensor& logits = given.logits;
    const int64_t rows = logits.size(0), classes = logits.size(1);
    const double label_smoothing = given.label_smoothing;
    const acc_t* class_weight = static_cast<const acc_t*>(given.class_weight);
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
    valid_ = prepare(given.labels, class_weight, label_smoothing);
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
      const SoftTarget<acc_t> target = soft_target(labels, i, targets_.classes, class_weight, kept);
      if (!target.valid) return false;
      class_a_[i] = target.a;
      class_b_[i] = target.b;
      weight_a_[i] = target.weight_a;
      weight_b_[i] = target.weight_b;
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

template <typename scalar_t>
void write_loss(const SoftRows& given, const RowLoss& out) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass(given);
  if (!pass.valid_target()) return fill_nan<acc_t>(out);
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    mixup_cross_entropy_kernels<scalar_t>().terms(pass.targets(), begin, end, scratch,
                                                  row_stats_of<acc_t>(out.stats), pass.per_row());
  });
  reduce_terms(pass.per_row(), given.labels.count, out.reduction, out.loss);
}

template <typename scalar_t>
void write_gradient(const SoftRows& given, const RowGradient& out) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass(given);
  scalar_t* dlogits = data<scalar_t>(out.dlogits);
  if (!pass.valid_target()) return fill_nan(dlogits, out.dlogits.numel());
  spread_gradient(out, given.labels.count, pass.per_row());
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    mixup_cross_entropy_kernels<scalar_t>().gradient(pass.targets(), begin, end, scratch,
                                                     row_stats_of<acc_t>(out.stats), pass.per_row(), dlogits);
  });
}

struct Cpu : RowLossesOnCpu {
  static void terms(const SoftRows& given, const RowLoss& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_loss<decltype(zero)>(given, out); });
  }
  static void gradient(const SoftRows& given, const RowGradient& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_gradient<decltype(zero)>(given, out); });
  }
};

}  // namespace
}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("mixup_cross_entropy_fwd.cpu", TORCH_BOX(&icm::mixup_cross_entropy_fwd<icm::Cpu>));
  m.impl("mixup_cross_entropy_bwd.cpu", TORCH_BOX(&icm::mixup_cross_entropy_bwd<icm::Cpu>));
}
