// Operators icm_loss_fwd and icm_loss_bwd on the CPU: checks, outputs and their meaning. The passes are in
// icm_loss_passes.h, the arithmetic in kernels/icm_loss*.h, the equations in icm_math.h.
#include "huge_pages.h"
#include "icm_loss_passes.h"

namespace icm {
namespace {

// Gradients from this size on are got from the system at many calls, from some 32 MiB on at every one.
constexpr int64_t kLargeGradientBytes = 12 << 20;

template <typename scalar_t>
Scores<scalar_t> scores(const char* op, const Tensor& logits, int64_t columns, int64_t diagonal,
                        const std::optional<Tensor>& logit_scale) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.is_cpu(), op, ": expected logits of shape (B, C) on the CPU");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes < std::numeric_limits<int32_t>::max() / 2, op, ": at most 2^30 classes");
  STD_TORCH_CHECK(diagonal >= 0 && rows <= columns && diagonal <= columns - rows, op,
                  ": expected the diagonal of ", rows, " rows to lie inside ", columns, " columns");
  Scores<scalar_t> s{};
  s.logits = data<const scalar_t>(logits);
  s.rows = rows;
  s.classes = classes;
  s.row_stride = logits.stride(0);
  s.class_stride = logits.stride(1);
  s.diagonal = diagonal;
  using acc_t = acc_type<scalar_t>;
  STD_TORCH_CHECK(!logit_scale.has_value() || logit_scale->dim() == 0, op,
                  ": expected logit_scale of shape ()");
  s.scale = logit_scale.has_value() ? broadcast_vector<acc_t>(op, "logit_scale", *logit_scale, 1)[0] : 1;
  s.sign = s.scale < 0 ? acc_t(-1) : acc_t(1);
  s.sigma = std::abs(s.scale) * acc_t(kLog2E);
  return s;
}

template <typename acc_t>
LogSum<acc_t> column_sums_of(const Tensor& stats, int64_t count) {
  acc_t* first = data<acc_t>(stats);
  return {first, first + count, first + 2 * count};
}

template <typename acc_t>
RowSums<acc_t> row_sums_of(const Tensor& stats, int64_t count) {
  return {column_sums_of<acc_t>(stats, count), data<acc_t>(stats) + 3 * count};
}

template <typename scalar_t>
auto forward(const Tensor& logits, const Tensor& y_a, const Tensor& y_b, const Tensor& lam,
             const std::optional<Tensor>& logit_scale, int64_t diagonal, bool class_axis, bool pair_axis,
             Reduction reduction) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* op = "icm_loss_fwd";
  const MixedLabels labels = mixed_labels(op, y_a, y_b, lam);
  Scores<scalar_t> s = scores<scalar_t>(op, logits, labels.count, diagonal, logit_scale);
  const bool none = reduction == Reduction::kNone;
  Tensor loss = none ? new_tensor({s.rows}, kScalarType<acc_t>) : new_tensor({}, kScalarType<acc_t>);
  Tensor terms = none ? new_tensor({2, s.rows}, kScalarType<acc_t>) : new_tensor({2}, kScalarType<acc_t>);
  Tensor row_stats = new_tensor({4, s.rows}, kScalarType<acc_t>);
  Tensor column_stats = new_tensor({3, labels.count}, kScalarType<acc_t>);
  const Tensor plan = new_tensor({0}, ScalarType::Int);  // the columns cost less to build again than to keep
  const auto result = [&] { return std::make_tuple(loss, terms, row_stats, column_stats, plan); };

  IcmLossForward<scalar_t> pass(labels, s);
  if (!pass.valid_target()) {
    for (const Tensor& t : {loss, terms, row_stats, column_stats}) fill_nan(data<acc_t>(t), t.numel());
    return result();
  }
  if (s.rows > 0)
    pass.run(class_axis, pair_axis, row_sums_of<acc_t>(row_stats, s.rows),
             column_sums_of<acc_t>(column_stats, labels.count));
  else
    fill(data<acc_t>(column_stats), 3 * labels.count, acc_t(0));

  acc_t *out = data<acc_t>(loss), *out_class = data<acc_t>(terms),
        *out_pair = out_class + (none ? s.rows : 1);
  if (none) {
    for (int64_t i = 0; i < s.rows; ++i) {
      out_class[i] = class_axis ? pass.row_term()[i] : acc_t(0);
      out_pair[i] = pair_axis ? pass.column_term()[i] : acc_t(0);
      out[i] = out_class[i] + out_pair[i];
    }
    return result();
  }
  double sum_class = 0, sum_pair = 0;
  for (int64_t i = 0; i < s.rows; ++i) {
    if (class_axis) sum_class += double(pass.row_term()[i]);
    if (pair_axis) sum_pair += double(pass.column_term()[i]);
  }
  const double count = reduction == Reduction::kMean ? double(s.rows) : 1.0;
  *out_class = acc_t(sum_class / count);
  *out_pair = acc_t(sum_pair / count);
  *out = acc_t((sum_class + sum_pair) / count);
  return result();
}

template <typename scalar_t>
auto backward(const Tensor& grad_row, const Tensor& grad_column, const Tensor& logits, const Tensor& y_a,
              const Tensor& y_b, const Tensor& lam, const std::optional<Tensor>& logit_scale,
              const Tensor& row_stats, const Tensor& column_stats, int64_t diagonal, bool class_axis,
              bool pair_axis, Reduction reduction, bool gradient_of_scale) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* op = "icm_loss_bwd";
  const MixedLabels labels = mixed_labels(op, y_a, y_b, lam);
  Scores<scalar_t> s = scores<scalar_t>(op, logits, labels.count, diagonal, logit_scale);
  const int64_t n = labels.count;
  STD_TORCH_CHECK(row_stats.numel() == 4 * s.rows && column_stats.numel() == 3 * n &&
                      row_stats.scalar_type() == kScalarType<acc_t> &&
                      column_stats.scalar_type() == kScalarType<acc_t> && row_stats.is_contiguous() &&
                      row_stats.is_cpu() && column_stats.is_cpu() && column_stats.is_contiguous(),
                  op, ": expected the statistics that icm_loss_fwd returned for these logits");
  const auto rows_grad = broadcast_vector<acc_t>(op, "grad_row", grad_row, s.rows);
  const auto columns_grad = broadcast_vector<acc_t>(op, "grad_column", grad_column, n);
  Tensor dlogits = new_tensor({s.rows, s.classes}, logits.scalar_type());
  ask_for_huge_pages(dlogits, kLargeGradientBytes);
  Tensor dscale = new_tensor({}, kScalarType<acc_t>);
  scalar_t* out = data<scalar_t>(dlogits);

  IcmLossBackward<scalar_t> pass(labels, s, gradient_of_scale);
  if (!pass.valid_target()) {
    fill_nan(out, dlogits.numel());
    fill_nan(data<acc_t>(dscale), 1);
    return std::make_tuple(dlogits, dscale);
  }
  acc_t total = 0;
  if (s.rows > 0) {
    const double factor = reduction == Reduction::kMean ? 1.0 / double(s.rows) : 1.0;
    total =
        acc_t(pass.run(rows_grad, columns_grad, factor, class_axis, pair_axis,
                       row_sums_of<acc_t>(row_stats, s.rows), column_sums_of<acc_t>(column_stats, n), out));
  }
  *data<acc_t>(dscale) = total;
  return std::make_tuple(dlogits, dscale);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> icm_loss_fwd_cpu(Tensor logits, Tensor y_a, Tensor y_b,
                                                                    Tensor lam,
                                                                    std::optional<Tensor> logit_scale,
                                                                    int64_t diagonal, bool class_axis,
                                                                    bool pair_axis, int64_t reduction) {
  const Reduction how = reduction_from("icm_loss_fwd", reduction);
  return dispatch_floating("icm_loss_fwd", logits, [&](auto zero) {
    return forward<decltype(zero)>(logits, y_a, y_b, lam, logit_scale, diagonal, class_axis, pair_axis, how);
  });
}

std::tuple<Tensor, Tensor> icm_loss_bwd_cpu(Tensor grad_row, Tensor grad_column, Tensor logits, Tensor y_a,
                                            Tensor y_b, Tensor lam, std::optional<Tensor> logit_scale,
                                            Tensor row_stats, Tensor column_stats, Tensor /*plan*/,
                                            int64_t diagonal, bool class_axis, bool pair_axis,
                                            int64_t reduction, bool gradient_of_scale) {
  const Reduction how = reduction_from("icm_loss_bwd", reduction);
  return dispatch_floating("icm_loss_bwd", logits, [&](auto zero) {
    return backward<decltype(zero)>(grad_row, grad_column, logits, y_a, y_b, lam, logit_scale, row_stats,
                                    column_stats, diagonal, class_axis, pair_axis, how, gradient_of_scale);
  });
}

}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("icm_loss_fwd.cpu", TORCH_BOX(&icm::icm_loss_fwd_cpu));
  m.impl("icm_loss_bwd.cpu", TORCH_BOX(&icm::icm_loss_bwd_cpu));
}
