// Operators am_mixup_loss_fwd and am_mixup_loss_bwd on the CPU: memory, threads and the list of rows that each row is
// the partner of. Checks and allocation are in ../row_loss_operators.h, the arithmetic in kernels/am_mixup_loss.cpp.
#include "kernels/am_mixup_loss.h"

#include "instruction_set.h"
#include "row_losses.h"

namespace icm {

ICM_DECLARE_KERNELS(AmMixupLossKernels, am_mixup_loss)

namespace {

// Mixed rows of one call, ready for the kernels, and the memory and threads of its pass.
template <typename scalar_t>
class Pass {
  using acc_t = acc_type<scalar_t>;

 public:
  Pass(const RowMix& given, bool backward) {
    const Tensor& logits = given.logits;
    const int64_t rows = logits.size(0), classes = logits.size(1);
    rows_ = {data<const scalar_t>(logits),
             rows,
             classes,
             logits.stride(0),
             logits.stride(1),
             nullptr,
             nullptr,
             nullptr};
    scratch_size_ = am_mixup_loss_kernels<scalar_t>().scratch_size(rows_);
    threads_ = thread_count(rows, rows * classes);
    workspace_.reserve(rows, &partner_);
    workspace_.reserve(rows, &label_);
    workspace_.reserve(rows, &own_weight_);
    workspace_.reserve(rows, &per_row_);
    workspace_.reserve(backward ? rows + 1 : 0, &first_);
    workspace_.reserve(backward ? rows : 0, &source_);
    workspace_.reserve(threads_ * scratch_size_, &scratch_);
    workspace_.allocate();
    rows_.partner = partner_;
    rows_.label = label_;
    rows_.own_weight = own_weight_;
    valid_ = prepare(given.given, given.rate.at<acc_t>(0));
    if (backward && valid_) list_sources();
  }

  bool valid_target() const { return valid_; }
  const MixedRows<scalar_t>& rows() const { return rows_; }
  PartnerOf partner_of() const { return {first_, source_}; }
  acc_t* per_row() const { return per_row_; }  // (rows,) for the terms or their gradient

  template <typename Body>
  void for_each_range(const Body& body) const {
    parallel_ranges(threads_, rows_.rows, [&](int64_t thread, int64_t begin, int64_t end) {
      body(begin, end, scratch_ + thread * scratch_size_);
    });
  }

 private:
  // Returns false for a rate, an index or a label out of range.
  bool prepare(const PartnerLabels& given, acc_t rate) {
    if (!lam_is_valid(rate)) return false;  // of no rows too
    for (int64_t i = 0; i < rows_.rows; ++i) {
      const MixedRow<acc_t> row = mixed_row(given, i, rows_.rows, rows_.classes, rate);
      if (!row.valid) return false;
      partner_[i] = row.partner;
      label_[i] = row.label;
      own_weight_[i] = row.own_weight;
    }
    return true;
  }

  // A counting sort of the rows by their partner; it keeps their order.
  void list_sources() {
    const int64_t rows = rows_.rows;
    const auto takes_part = [&](int64_t i) { return partner_weight(own_weight_[i]) != acc_t(0); };
    fill(first_, rows + 1, int64_t(0));
    for (int64_t i = 0; i < rows; ++i)
      if (takes_part(i)) ++first_[partner_[i] + 1];
    for (int64_t j = 0; j < rows; ++j) first_[j + 1] += first_[j];
    for (int64_t i = 0; i < rows; ++i)
      if (takes_part(i)) source_[first_[partner_[i]]++] = i;
    // Every start has moved to the next one's place.
    for (int64_t j = rows; j > 0; --j) first_[j] = first_[j - 1];
    first_[0] = 0;
  }

  Workspace workspace_;
  MixedRows<scalar_t> rows_;
  int64_t *partner_, *label_, *first_, *source_;
  acc_t *own_weight_, *per_row_, *scratch_;
  int64_t threads_, scratch_size_;
  bool valid_;
};

template <typename scalar_t>
void write_loss(const RowMix& given, const RowLoss& out) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass(given, false);
  if (!pass.valid_target()) return fill_nan<acc_t>(out);
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    am_mixup_loss_kernels<scalar_t>().terms(pass.rows(), begin, end, scratch, row_stats_of<acc_t>(out.stats),
                                            pass.per_row());
  });
  reduce_terms(pass.per_row(), given.logits.size(0), out.reduction, out.loss);
}

template <typename scalar_t>
void write_gradient(const RowMix& given, const RowGradient& out) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass(given, true);
  scalar_t* dlogits = data<scalar_t>(out.dlogits);
  if (!pass.valid_target()) return fill_nan(dlogits, out.dlogits.numel());
  spread_gradient(out, given.logits.size(0), pass.per_row());
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    am_mixup_loss_kernels<scalar_t>().gradient(pass.rows(), pass.partner_of(), begin, end, scratch,
                                               row_stats_of<acc_t>(out.stats), pass.per_row(), dlogits);
  });
}

struct Cpu : RowLossesOnCpu {
  static void terms(const RowMix& given, const RowLoss& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_loss<decltype(zero)>(given, out); });
  }
  static void gradient(const RowMix& given, const RowGradient& out) {
    dispatch_floating(given.op, given.logits, [&](auto zero) { write_gradient<decltype(zero)>(given, out); });
  }
};

}  // namespace
}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("am_mixup_loss_fwd.cpu", TORCH_BOX(&icm::am_mixup_loss_fwd<icm::Cpu>));
  m.impl("am_mixup_loss_bwd.cpu", TORCH_BOX(&icm::am_mixup_loss_bwd<icm::Cpu>));
}
