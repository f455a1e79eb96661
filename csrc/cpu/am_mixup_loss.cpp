// Operators am_mixup_loss_fwd and am_mixup_loss_bwd on the CPU: checks, memory, threads and the list of
// rows that each row is the partner of. The arithmetic is in kernels/am_mixup_loss.cpp.
#include "kernels/am_mixup_loss.h"

#include "instruction_set.h"
#include "row_losses.h"

namespace icm {

ICM_DECLARE_KERNELS(AmMixupLossKernels, am_mixup_loss)

namespace {

struct Partners {
  const int64_t *index, *labels;
  int64_t index_stride, labels_stride;
};

Partners partners(const char* op, const Tensor& logits, const Tensor& index, const Tensor& labels) {
  check_logits(op, logits);
  for (const Tensor& t : {index, labels})
    STD_TORCH_CHECK(
        t.dim() == 1 && t.size(0) == logits.size(0) && t.scalar_type() == ScalarType::Long && t.is_cpu(), op,
        ": expected int64 index and labels of shape (", logits.size(0), ",) on the CPU");
  return {data<const int64_t>(index), data<const int64_t>(labels), index.stride(0), labels.stride(0)};
}

// Mixed rows of one call, ready for the kernels, and the memory and threads of its pass.
template <typename scalar_t>
class Pass {
  using acc_t = acc_type<scalar_t>;

 public:
  Pass(const char* op, const Tensor& logits, const Partners& given, const Tensor& rate, bool backward) {
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
    valid_ = prepare(given, broadcast_vector<acc_t>(op, "rate", rate, 1)[0]);
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
  bool prepare(const Partners& given, acc_t rate) {
    if (!lam_is_valid(rate)) return false;
    const auto label = [&](int64_t i) { return given.labels[i * given.labels_stride]; };
    for (int64_t i = 0; i < rows_.rows; ++i) {
      partner_[i] = given.index[i * given.index_stride];
      if (partner_[i] < 0 || partner_[i] >= rows_.rows || label(i) < 0 || label(i) >= rows_.classes)
        return false;
      label_[i] = label(rate >= acc_t(0.5) ? i : partner_[i]);
      own_weight_[i] = partner_[i] == i ? acc_t(1) : rate;
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

template <typename acc_t>
MixedRowStats<acc_t> row_stats_of(const Tensor& stats, int64_t rows) {
  return {data<acc_t>(stats), data<acc_t>(stats) + rows};
}

template <typename scalar_t>
auto forward(const Tensor& logits, const Partners& given, const Tensor& rate, Reduction reduction) {
  using acc_t = acc_type<scalar_t>;
  const Pass<scalar_t> pass("am_mixup_loss_fwd", logits, given, rate, false);
  const int64_t rows = logits.size(0);
  Tensor loss = new_loss<acc_t>(rows, reduction);
  Tensor stats = new_tensor({2, rows}, kScalarType<acc_t>);
  if (!pass.valid_target()) {
    for (const Tensor& t : {loss, stats}) fill_nan(data<acc_t>(t), t.numel());
    return std::make_tuple(loss, stats);
  }
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    am_mixup_loss_kernels<scalar_t>().terms(pass.rows(), begin, end, scratch,
                                            row_stats_of<acc_t>(stats, rows), pass.per_row());
  });
  reduce_terms(pass.per_row(), rows, reduction, loss);
  return std::make_tuple(loss, stats);
}

template <typename scalar_t>
Tensor backward(const Tensor& grad, const Tensor& logits, const Partners& given, const Tensor& rate,
                const Tensor& row_stats, Reduction reduction) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* op = "am_mixup_loss_bwd";
  const Pass<scalar_t> pass(op, logits, given, rate, true);
  const int64_t rows = logits.size(0);
  check_row_stats<acc_t>(op, row_stats, rows);
  const auto incoming = broadcast_vector<acc_t>(op, "grad", grad, rows);
  Tensor dlogits = new_tensor({rows, logits.size(1)}, logits.scalar_type());
  scalar_t* out = data<scalar_t>(dlogits);
  if (!pass.valid_target()) {
    fill_nan(out, dlogits.numel());
    return dlogits;
  }
  spread_gradient(incoming, rows, reduction, pass.per_row());
  pass.for_each_range([&](int64_t begin, int64_t end, acc_t* scratch) {
    am_mixup_loss_kernels<scalar_t>().gradient(pass.rows(), pass.partner_of(), begin, end, scratch,
                                               row_stats_of<acc_t>(row_stats, rows), pass.per_row(), out);
  });
  return dlogits;
}

}  // namespace

std::tuple<Tensor, Tensor> am_mixup_loss_fwd_cpu(Tensor logits, Tensor index, Tensor rate, Tensor labels,
                                                 int64_t reduction) {
  constexpr const char* op = "am_mixup_loss_fwd";
  const Reduction how = reduction_from(op, reduction);
  const Partners given = partners(op, logits, index, labels);
  return dispatch_floating(op, logits,
                           [&](auto zero) { return forward<decltype(zero)>(logits, given, rate, how); });
}

Tensor am_mixup_loss_bwd_cpu(Tensor grad, Tensor logits, Tensor index, Tensor rate, Tensor labels,
                             Tensor row_stats, int64_t reduction) {
  constexpr const char* op = "am_mixup_loss_bwd";
  const Reduction how = reduction_from(op, reduction);
  const Partners given = partners(op, logits, index, labels);
  return dispatch_floating(op, logits, [&](auto zero) {
    return backward<decltype(zero)>(grad, logits, given, rate, row_stats, how);
  });
}

}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("am_mixup_loss_fwd.cpu", TORCH_BOX(&icm::am_mixup_loss_fwd_cpu));
  m.impl("am_mixup_loss_bwd.cpu", TORCH_BOX(&icm::am_mixup_loss_bwd_cpu));
}
