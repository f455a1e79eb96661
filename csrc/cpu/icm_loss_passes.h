// The forward and the backward pass of icm_loss: memory, threads and the order of the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../icm_math.h"
#include "instruction_set.h"
#include "kernels/icm_loss.h"
#include "tensors.h"

namespace icm {

ICM_DECLARE_KERNELS(IcmLossKernels, icm_loss)

// Groups of rows whose column sums are formed on their own and merged in order: a function of the shape
// alone, so that results do not depend on the number of threads. Merging a group costs about as much as
// 16 rows of it; 32 groups bound the memory of the partial sums.
struct RowGroups {
  int64_t rows_per_group, count;

  RowGroups(int64_t rows, int64_t columns, int64_t classes) {
    const int64_t least = classes > 4 * columns ? 64 : 256;
    const int64_t wanted = std::max((rows + 31) / 32, std::min<int64_t>(rows / 16, 512));
    rows_per_group = std::max(least, round_up(wanted, 64));
    count = (rows + rows_per_group - 1) / rows_per_group;
  }
  int64_t begin(int64_t group) const { return group * rows_per_group; }
  int64_t end(int64_t group, int64_t rows) const { return std::min(rows, (group + 1) * rows_per_group); }
};

// Merges `count` sums of each group, in order, relative to the largest offset; the rows' weights follow.
template <typename acc_t>
void merge_sums(const acc_t* partial, const acc_t* offsets, acc_t largest, const RowGroups& groups,
                int64_t count, acc_t sigma, RowSums<acc_t> rows, int64_t row_count, acc_t* out) {
  fill(out, count, acc_t(0));
  for (int64_t g = 0; g < groups.count; ++g) {
    const acc_t factor = std::exp2((offsets[g] - largest) * sigma);
    for (int64_t j = 0; j < count; ++j) out[j] += factor * partial[g * count + j];
    for (int64_t i = groups.begin(g); i < groups.end(g, row_count); ++i) rows.weight[i] *= factor;
  }
}

template <typename acc_t>
bool all_trusted(const acc_t* sums, int64_t count, int64_t terms) {
  bool trusted = true;
  for (int64_t i = 0; i < count; ++i) trusted &= sum_is_trusted(sums[i], double(terms));
  return trusted;
}

template <typename scalar_t>
class IcmLossForward {
  using acc_t = acc_type<scalar_t>;

 public:
  IcmLossForward(const MixedLabels& labels, Scores<scalar_t>& s)
      : s_(s), groups_(s.rows, labels.count, s.classes) {
    const int64_t columns = labels.count;
    s_.columns.count = columns;
    s_.columns.used = std::min(2 * columns, s.classes);  // an upper bound, for the size of the scratch
    threads_ = thread_count(groups_.count, s.rows * (columns + s.classes));
    scratch_size_ = round_up(icm_loss_kernels<scalar_t>().scratch_size(s_, false), 16);
    buffers_.reserve(workspace_, columns, s.classes);
    sorted_buffers_.reserve(workspace_, columns, s.classes);
    workspace_.reserve(columns, &sorted_sum_);
    workspace_.reserve(threads_ * scratch_size_, &scratch_);
    workspace_.reserve(groups_.count * columns, &partial_);
    workspace_.reserve(groups_.count, &offsets_);
    workspace_.reserve(s.rows, &diagonal_.row);
    workspace_.reserve(s.rows, &diagonal_.column);
    workspace_.reserve(s.rows, &diagonal_.exponential);
    workspace_.reserve(2 * s.rows, &terms_);
    workspace_.allocate();
    valid_ = prepare_columns(labels, s.classes, buffers_, &s_.columns);
    if (valid_) s_.sorted = sort_columns(labels, s_.columns, sorted_buffers_);
  }

  bool valid_target() const { return valid_; }

  // Row and column statistics and terms.
  void run(bool class_axis, bool pair_axis, RowSums<acc_t> rows, LogSum<acc_t> columns) {
    const auto& k = icm_loss_kernels<scalar_t>();
    const int64_t n = s_.columns.count, sorted = s_.sorted.count;
    for_each_group([&](int64_t g, int64_t begin, int64_t end, acc_t* scratch) {
      k.sums(s_, begin, end, scratch, rows, diagonal_, partial_ + g * sorted, offsets_ + g);
    });
    const acc_t largest = *std::max_element(offsets_, offsets_ + groups_.count);
    merge_sums(partial_, offsets_, largest, groups_, sorted, s_.sigma, rows, s_.rows, sorted_sum_);
    fill(columns.offset, n, largest);
    fill(columns.shift, n, acc_t(0));
    for (int64_t j = 0; j < n; ++j) columns.sum[j] = sorted_sum_[s_.sorted.of_column[j]];
    const bool repaired = (class_axis && !all_trusted(rows.sum, s_.rows, n)) ||
                          (pair_axis && !all_trusted(columns.sum, n, s_.rows));
    if (repaired) repair(rows, columns);
    k.terms(s_, 0, s_.rows, repaired, rows, columns, diagonal_, row_term(), column_term());
  }

  acc_t* row_term() const { return terms_; }
  acc_t* column_term() const { return terms_ + s_.rows; }

 private:
  template <typename Body>
  void for_each_group(const Body& body) {
    parallel_ranges(threads_, groups_.count, [&](int64_t thread, int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g)
        body(g, groups_.begin(g), groups_.end(g, s_.rows), scratch_ + thread * scratch_size_);
    });
  }

  // Some sum has lost what it consists of to underflow, or is not finite: all sums again, relative to
  // exact maxima, whatever the range of the logits. Only such a batch pays for it.
  void repair(RowSums<acc_t> rows, LogSum<acc_t> columns) {
    const auto& k = icm_loss_kernels<scalar_t>();
    const int64_t n = s_.columns.count;
    const acc_t offset = median_offset(rows.offset);
    fill(columns.offset, n, offset);
    fill_nan(rows.weight, s_.rows);  // the mark of a repair
    for_each_group([&](int64_t g, int64_t begin, int64_t end, acc_t* scratch) {
      k.maxima(s_, begin, end, scratch, rows, offset, partial_ + g * n);
    });
    fill(columns.shift, n, -std::numeric_limits<acc_t>::infinity());
    for (int64_t g = 0; g < groups_.count; ++g)
      for (int64_t j = 0; j < n; ++j) columns.shift[j] = std::max(columns.shift[j], partial_[g * n + j]);
    for_each_group([&](int64_t g, int64_t begin, int64_t end, acc_t* scratch) {
      k.shifted_sums(s_, begin, end, scratch, rows, columns, diagonal_, partial_ + g * n);
    });
    fill(columns.sum, n, acc_t(0));
    for (int64_t g = 0; g < groups_.count; ++g)
      for (int64_t j = 0; j < n; ++j) columns.sum[j] += partial_[g * n + j];
  }

  // The middle of the rows' offsets: one image far from the others must not cost the others their digits. Rows
  // without a finite logit have none.
  acc_t median_offset(const acc_t* offsets) {
    acc_t* sorted = terms_;  // free until the terms are formed
    acc_t* end = std::copy_if(offsets, offsets + s_.rows, sorted,
                              [](acc_t x) { return x > -std::numeric_limits<acc_t>::max(); });
    if (end == sorted) return 0;
    acc_t* middle = sorted + (end - sorted) / 2;
    std::nth_element(sorted, middle, end);
    return *middle;
  }

  Scores<scalar_t>& s_;
  RowGroups groups_;
  Workspace workspace_;
  ColumnBuffers<acc_t> buffers_;
  SortedBuffers<acc_t> sorted_buffers_;
  int64_t threads_, scratch_size_;
  acc_t *scratch_, *partial_, *offsets_, *terms_, *sorted_sum_;
  Diagonal<acc_t> diagonal_;
  bool valid_;
};

// A power of two by which large incoming gradients are divided while they are divided by sums, which may be as
// small as 2^-94: the quotient must not overflow. At least `least`.
template <typename acc_t>
acc_t gradient_unit(Broadcast<acc_t> grad, int64_t count, acc_t least) {
  acc_t largest = least;
  const int64_t entries = grad.stride == 0 ? std::min<int64_t>(count, 1) : count;
  for (int64_t i = 0; i < entries; ++i) {
    const acc_t g = std::abs(grad[i]);
    if (g > largest && g <= std::numeric_limits<acc_t>::max()) largest = g;
  }
  constexpr acc_t everyday = acc_t(1 << 20);
  return largest <= everyday ? least : std::exp2(std::floor(std::log2(largest)));
}

template <typename scalar_t>
class IcmLossBackward {
  using acc_t = acc_type<scalar_t>;

 public:
  IcmLossBackward(const MixedLabels& labels, Scores<scalar_t>& s, bool gradient_of_scale) : s_(s) {
    const int64_t columns = labels.count;
    s_.columns.count = columns;
    s_.columns.used = std::min(2 * columns, s.classes);
    tile_ = icm_loss_kernels<scalar_t>().tile_rows;
    tiles_ = (s.rows + tile_ - 1) / tile_;
    threads_ = thread_count(tiles_, s.rows * (columns + s.classes));
    scratch_size_ = round_up(icm_loss_kernels<scalar_t>().scratch_size(s_, gradient_of_scale), 16);
    buffers_.reserve(workspace_, columns, s.classes);
    sorted_buffers_.reserve(workspace_, columns, s.classes);
    workspace_.reserve(columns, &sorted_factor_);
    workspace_.reserve(columns, &factor_sum_);
    workspace_.reserve(threads_ * scratch_size_, &scratch_);
    workspace_.reserve(s.rows, &row_factor_);
    workspace_.reserve(columns, &column_factor_);
    workspace_.reserve(s.rows, &diagonal_loss_);
    if (gradient_of_scale) workspace_.reserve(s.rows, &dscale_);
    workspace_.allocate();
    valid_ = prepare_columns(labels, s.classes, buffers_, &s_.columns);
    if (valid_) s_.sorted = sort_columns(labels, s_.columns, sorted_buffers_);
  }

  bool valid_target() const { return valid_; }

  // Returns dL/dscale, or 0 when it was not asked for.
  double run(Broadcast<acc_t> grad_row, Broadcast<acc_t> grad_column, double grad_factor, bool class_axis,
             bool pair_axis, RowSums<acc_t> rows, LogSum<acc_t> columns, scalar_t* dlogits) {
    const int64_t n = s_.columns.count;
    const acc_t unit = gradient_unit(grad_row, s_.rows, gradient_unit(grad_column, n, acc_t(1)));
    const double factor = grad_factor / double(unit);
    const bool repaired = std::isnan(rows.weight[0]);
    for (int64_t j = 0; j < n;
         ++j) {  // a column that no row here owns may have no sum, and then no gradient either
      const acc_t g = pair_axis ? acc_t(factor * grad_column[j]) : acc_t(0);
      column_factor_[j] = g == acc_t(0) ? acc_t(0) : g / columns.sum[j];
    }
    for (int64_t i = 0; i < s_.rows; ++i) {
      const acc_t g_row = class_axis ? acc_t(factor * grad_row[i]) : acc_t(0);
      const acc_t g_column = pair_axis ? acc_t(factor * grad_column[s_.diagonal + i]) : acc_t(0);
      row_factor_[i] = class_axis ? g_row / rows.sum[i] : acc_t(0);
      diagonal_loss_[i] = g_row + g_column;
    }
    if (!repaired) {
      // In double: equal columns are many equal numbers, whose roundings would not cancel.
      fill(factor_sum_, s_.sorted.count, 0.0);
      for (int64_t j = 0; j < n; ++j) factor_sum_[s_.sorted.of_column[j]] += double(column_factor_[j]);
      for (int64_t p = 0; p < s_.sorted.count; ++p) sorted_factor_[p] = acc_t(factor_sum_[p]);
    }
    const acc_t* factors = repaired ? column_factor_ : sorted_factor_;
    const Gradient<scalar_t> gradient{row_factor_, factors,    diagonal_loss_, dlogits, dscale_,
                                      unit,        class_axis, pair_axis,      repaired};
    parallel_ranges(threads_, tiles_, [&](int64_t thread, int64_t begin, int64_t end) {
      icm_loss_kernels<scalar_t>().gradient(s_, begin * tile_, std::min(s_.rows, end * tile_),
                                            scratch_ + thread * scratch_size_, rows, columns, gradient);
    });
    double dscale = 0;
    if (dscale_ != nullptr)
      for (int64_t i = 0; i < s_.rows; ++i) dscale += double(dscale_[i]);
    return dscale * double(unit);
  }

 private:
  Scores<scalar_t>& s_;
  Workspace workspace_;
  ColumnBuffers<acc_t> buffers_;
  SortedBuffers<acc_t> sorted_buffers_;
  int64_t threads_, scratch_size_, tile_, tiles_;
  acc_t *scratch_, *row_factor_, *column_factor_, *diagonal_loss_, *sorted_factor_, *dscale_ = nullptr;
  double* factor_sum_;
  bool valid_;
};

}  // namespace icm
