// Operators score_sums and score_gradient on the CPU: checks, memory and threads of the loss of given scores, a block of
// rows at a time. The arithmetic is in kernels/score_loss.cpp; reference: score_loss, equations 5 and 7.
#include "kernels/score_loss.h"

#include "instruction_set.h"
#include "tensors.h"
#include "workspace.h"

namespace icm {

ICM_DECLARE_KERNELS(ScoreLossKernels, score_loss)

namespace {

// Rows whose column sums one thread forms before they are merged with the others', in order: results do not depend on
// the number of threads.
constexpr int64_t kGroupRows = 64;

template <typename scalar_t>
ScoreBlock<scalar_t> block_of(const char* op, const Tensor& scores, const std::optional<Tensor>& logit_scale,
                              int64_t diagonal) {
  STD_TORCH_CHECK(scores.dim() == 2 && scores.is_cpu() && scores.is_contiguous(), op,
                  ": expected contiguous scores of shape (rows, columns) on the CPU");
  const int64_t rows = scores.size(0), columns = scores.size(1);
  STD_TORCH_CHECK(diagonal >= 0 && rows <= columns && diagonal <= columns - rows, op,
                  ": expected the diagonal of ", rows, " rows to lie inside ", columns, " columns");
  STD_TORCH_CHECK(!logit_scale.has_value() || logit_scale->dim() == 0, op,
                  ": expected logit_scale of shape ()");
  using acc_t = acc_type<scalar_t>;
  const acc_t scale =
      logit_scale.has_value() ? broadcast_vector<acc_t>(op, "logit_scale", *logit_scale, 1)[0] : acc_t(1);
  return {data<scalar_t>(scores), rows, columns, diagonal, scale};
}

template <typename scalar_t>
auto sums(const Tensor& scores, const std::optional<Tensor>& logit_scale, int64_t diagonal) {
  using acc_t = acc_type<scalar_t>;
  const auto block = block_of<scalar_t>("score_sums", scores, logit_scale, diagonal);
  const auto& kernels = score_loss_kernels<scalar_t>();
  Tensor row_stats = new_tensor({3, block.rows}, kScalarType<acc_t>);
  Tensor column_stats = new_tensor({2, block.columns}, kScalarType<acc_t>);
  acc_t* const of_rows = data<acc_t>(row_stats);
  acc_t* const of_columns = data<acc_t>(column_stats);
  const ScoreSums<acc_t> rows{of_rows, of_rows + block.rows}, merged{of_columns, of_columns + block.columns};
  fill(merged.maximum, block.columns, -std::numeric_limits<acc_t>::infinity());
  fill(merged.sum, block.columns, acc_t(0));

  const int64_t groups = (block.rows + kGroupRows - 1) / kGroupRows;
  const int64_t threads = thread_count(groups, 4 * block.rows * block.columns);
  Workspace workspace;
  acc_t *partial, *scratch;
  workspace.reserve(2 * groups * block.columns, &partial);
  workspace.reserve(threads * block.columns, &scratch);
  workspace.allocate();
  const auto sums_of = [&](int64_t group) {
    acc_t* const first = partial + 2 * group * block.columns;
    return ScoreSums<acc_t>{first, first + block.columns};
  };
  parallel_ranges(threads, groups, [&](int64_t thread, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g)
      kernels.sums(block, g * kGroupRows, std::min(block.rows, (g + 1) * kGroupRows), rows,
                   of_rows + 2 * block.rows, sums_of(g), scratch + thread * block.columns);
  });
  for (int64_t g = 0; g < groups; ++g) kernels.merge(block.columns, sums_of(g), merged);
  return std::make_tuple(row_stats, column_stats);
}

template <typename scalar_t>
Tensor gradient(const Tensor& scores, const std::optional<Tensor>& logit_scale, const Tensor& grad_row,
                const Tensor& grad_column, const Tensor& row_stats, const Tensor& column_stats,
                int64_t diagonal, bool class_axis, bool pair_axis, bool gradient_of_scale) {
  using acc_t = acc_type<scalar_t>;
  constexpr const char* op = "score_gradient";
  const auto block = block_of<scalar_t>(op, scores, logit_scale, diagonal);
  const int64_t n = block.columns;
  const auto is_statistic = [](const Tensor& stats, int64_t first, int64_t second) {
    return stats.dim() == 2 && stats.size(0) == first && stats.size(1) == second && stats.is_cpu() &&
           stats.scalar_type() == kScalarType<acc_t> && stats.is_contiguous();
  };
  STD_TORCH_CHECK(is_statistic(row_stats, 3, block.rows) && is_statistic(column_stats, 2, n), op,
                  ": expected the statistics that score_sums returned for these scores");
  const auto of_rows = broadcast_vector<acc_t>(op, "grad_row", grad_row, block.rows);
  const auto of_columns = broadcast_vector<acc_t>(op, "grad_column", grad_column, n);
  const acc_t* const rows = data<const acc_t>(row_stats);
  const acc_t* const columns = data<const acc_t>(column_stats);

  const int64_t threads = thread_count(block.rows, 4 * block.rows * n);
  Workspace workspace;
  acc_t *row_factor, *own_loss, *column_maximum, *column_factor, *dscale = nullptr;
  workspace.reserve(block.rows, &row_factor);
  workspace.reserve(block.rows, &own_loss);
  workspace.reserve(n, &column_maximum);
  workspace.reserve(n, &column_factor);
  if (gradient_of_scale) workspace.reserve(block.rows, &dscale);
  workspace.allocate();
  for (int64_t j = 0; j < n; ++j) {
    const acc_t g = pair_axis ? of_columns[j] : acc_t(0);
    // A column that no row here owns may have no score but -inf, and then has no gradient either.
    const bool takes_part = g != acc_t(0);
    column_factor[j] = takes_part ? g / columns[n + j] : acc_t(0);
    column_maximum[j] = takes_part ? columns[j] : std::numeric_limits<acc_t>::infinity();
  }
  for (int64_t i = 0; i < block.rows; ++i) {
    const acc_t g_row = class_axis ? of_rows[i] : acc_t(0),
                g_column = pair_axis ? of_columns[diagonal + i] : acc_t(0);
    row_factor[i] = class_axis ? g_row / rows[block.rows + i] : acc_t(0);
    own_loss[i] = g_row + g_column;
  }
  const ScoreFactors<acc_t> factors{rows,     row_factor, column_maximum, column_factor,
                                    own_loss, class_axis, pair_axis};
  parallel_ranges(threads, block.rows, [&](int64_t, int64_t begin, int64_t end) {
    score_loss_kernels<scalar_t>().gradient(block, begin, end, factors, dscale);
  });
  double total = 0;
  if (gradient_of_scale)
    for (int64_t i = 0; i < block.rows; ++i) total += double(dscale[i]);
  Tensor result = new_tensor({}, kScalarType<acc_t>);
  *data<acc_t>(result) = acc_t(total);
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> score_sums_cpu(Tensor scores, std::optional<Tensor> logit_scale,
                                          int64_t diagonal) {
  return dispatch_floating("score_sums", scores,
                           [&](auto zero) { return sums<decltype(zero)>(scores, logit_scale, diagonal); });
}

Tensor score_gradient_cpu(Tensor scores, std::optional<Tensor> logit_scale, Tensor grad_row,
                          Tensor grad_column, Tensor row_stats, Tensor column_stats, int64_t diagonal,
                          bool class_axis, bool pair_axis, bool gradient_of_scale) {
  return dispatch_floating("score_gradient", scores, [&](auto zero) {
    return gradient<decltype(zero)>(scores, logit_scale, grad_row, grad_column, row_stats, column_stats,
                                    diagonal, class_axis, pair_axis, gradient_of_scale);
  });
}

}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("score_sums.cpu", TORCH_BOX(&icm::score_sums_cpu));
  m.impl("score_gradient.cpu", TORCH_BOX(&icm::score_gradient_cpu));
}
