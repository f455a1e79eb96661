// The loss of given scores on the CPU (equations 5 and 7): sums of exponentials along both axes, and the gradient.
//
// Columns lie across the lanes. An exponential for each axis, relative to the exact maximum of each row and column:
// nothing underflows that counts, whatever the range of the scores, and what these passes cost is little beside the
// matrix product that made the scores.
#include "score_loss.h"

#include "softmax.h"

namespace icm::ICM_ISA {
namespace {

// Rows that are worked on at once; a column's numbers are read and written once for them.
constexpr int kRowsAtOnce = 4;
// Rows between two looks at the columns' maxima: few enough to stay in cache between the passes.
constexpr int64_t kBand = 16;

template <typename acc_t>
constexpr acc_t kLowest = -acc_t(__builtin_huge_val());

// The offset of a maximum: -inf, that of nothing but -inf, would turn its exponentials 0 into NaN.
template <typename acc_t>
ICM_INLINE Vec<acc_t> offset_of(Vec<acc_t> maximum) {
  return maximum == kLowest<acc_t> ? Vec<acc_t>{} : maximum;
}

// t of the vector at `position` of a row.
template <typename scalar_t>
ICM_INLINE Vec<acc_type<scalar_t>> scaled_scores(const ScoreBlock<scalar_t>& s, int64_t row,
                                                 int64_t position) {
  return load_in_row(s.scores + row * s.columns, s.columns, position) * s.scale;
}

// Calls body(position, keep) for the vectors of a row; see for_each_vector.
template <typename acc_t, typename Body>
ICM_INLINE void for_each_position(int64_t columns, Body body) {
  constexpr int L = kLanes<acc_t>;
  int64_t j = 0;
  for (; j + L <= columns; j += L) body(j, ~IVec<acc_t>{});
  if (j == columns) return;
  if (columns > L)
    body(columns - L, lanes_between<acc_t>(L - int(columns - j), L));
  else
    body(int64_t(0), lanes_between<acc_t>(0, int(columns)));
}

// Maxima of R rows from `row` on, and of the columns so far.
template <int R, typename scalar_t, typename acc_t>
ICM_INLINE void find_maxima(const ScoreBlock<scalar_t>& s, int64_t row, acc_t* row_maximum,
                            acc_t* column_maximum) {
  Vec<acc_t> largest[R];
  for (int r = 0; r < R; ++r) largest[r] = broadcast(kLowest<acc_t>);
  for_each_position<acc_t>(s.columns, [&](int64_t j, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    Vec<acc_t> column = load_in_row(column_maximum, s.columns, j);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec<acc_t> t = scaled_scores(s, row + r, j);
      largest[r] = (t > largest[r]) & keep ? t : largest[r];
      column = t > column ? t : column;
    }
    store_in_row(column_maximum, s.columns, j, column);
  });
  for (int r = 0; r < R; ++r) row_maximum[row + r] = largest_lane<acc_t>(largest[r]);
}

template <int R, typename scalar_t, typename acc_t>
ICM_INLINE void add_exponentials(const ScoreBlock<scalar_t>& s, int64_t row, ScoreSums<acc_t> rows,
                                 ScoreSums<acc_t> columns) {
  Vec<acc_t> sum[R] = {};
  for_each_position<acc_t>(s.columns, [&](int64_t j, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    const Vec<acc_t> offset = offset_of<acc_t>(load_in_row(columns.maximum, s.columns, j));
    const Vec<acc_t> before = load_in_row(columns.sum, s.columns, j);
    Vec<acc_t> column = {};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec<acc_t> t = scaled_scores(s, row + r, j);
      sum[r] += select<acc_t>(keep, exp2<acc_t>(shifted(t, rows.maximum[row + r])), Vec<acc_t>{});
      column += exp2<acc_t>((t - offset) * acc_t(kLog2E));
    }
    // A lane that was visited before keeps its sum.
    store_in_row(columns.sum, s.columns, j, before + select<acc_t>(keep, column, Vec<acc_t>{}));
  });
  for (int r = 0; r < R; ++r) rows.sum[row + r] = sum_lanes<acc_t>(sum[r]);
}

// Calls body(rows at once, row) for rows [begin, end).
template <int R>
struct AtOnce {
  static constexpr int rows = R;
};
template <typename Body>
ICM_INLINE void for_rows_at_once(int64_t begin, int64_t end, Body body) {
  int64_t row = begin;
  for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) body(AtOnce<kRowsAtOnce>{}, row);
  for (; row < end; ++row) body(AtOnce<1>{}, row);
}

// The columns' sums relative to larger maxima.
template <typename acc_t>
ICM_INLINE void rescale(int64_t columns, const acc_t* maximum, ScoreSums<acc_t> sums) {
  for_each_position<acc_t>(columns, [&](int64_t j, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    const Vec<acc_t> before = load_in_row(sums.maximum, columns, j), now = load_in_row(maximum, columns, j);
    const IVec<acc_t> grew = (now != before) & keep;
    if (!any<acc_t>(grew)) return;
    const Vec<acc_t> sum = load_in_row(sums.sum, columns, j);
    store_in_row(sums.sum, columns, j,
                 select<acc_t>(grew, sum * exp2<acc_t>((before - now) * acc_t(kLog2E)), sum));
    store_in_row(sums.maximum, columns, j, now);
  });
}

template <typename scalar_t>
void sums(const ScoreBlock<scalar_t>& s, int64_t begin, int64_t end, ScoreSums<acc_type<scalar_t>> rows,
          acc_type<scalar_t>* own, ScoreSums<acc_type<scalar_t>> columns, acc_type<scalar_t>* grown) {
  using acc_t = acc_type<scalar_t>;
  for (int64_t j = 0; j < s.columns; ++j) {
    columns.maximum[j] = kLowest<acc_t>;
    columns.sum[j] = 0;
  }
  for (int64_t band = begin; band < end; band += kBand) {
    const int64_t last = band + kBand < end ? band + kBand : end;
    __builtin_memcpy(grown, columns.maximum, sizeof(acc_t) * size_t(s.columns));
    for_rows_at_once(band, last, [&](auto at_once, int64_t row) ICM_LAMBDA_INLINE {
      find_maxima<decltype(at_once)::rows>(s, row, rows.maximum, grown);
    });
    rescale(s.columns, static_cast<const acc_t*>(grown), columns);
    for_rows_at_once(band, last, [&](auto at_once, int64_t row) ICM_LAMBDA_INLINE {
      add_exponentials<decltype(at_once)::rows>(s, row, rows, columns);
    });
  }
  for (int64_t i = begin; i < end; ++i) own[i] = to_acc(s.scores[i * s.columns + s.diagonal + i]) * s.scale;
}

template <typename scalar_t>
void merge(int64_t columns, ScoreSums<acc_type<scalar_t>> other, ScoreSums<acc_type<scalar_t>> merged) {
  using acc_t = acc_type<scalar_t>;
  for_each_position<acc_t>(columns, [&](int64_t j, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
    const Vec<acc_t> a = load_in_row(merged.maximum, columns, j), b = load_in_row(other.maximum, columns, j);
    const Vec<acc_t> most = b > a ? b : a, offset = offset_of<acc_t>(most);
    const Vec<acc_t> sum_a = load_in_row(merged.sum, columns, j), sum_b = load_in_row(other.sum, columns, j);
    const Vec<acc_t> sum =
        sum_a * exp2<acc_t>((a - offset) * acc_t(kLog2E)) + sum_b * exp2<acc_t>((b - offset) * acc_t(kLog2E));
    store_in_row(merged.maximum, columns, j, select<acc_t>(keep, most, a));
    store_in_row(merged.sum, columns, j, select<acc_t>(keep, sum, sum_a));
  });
}

// dL/dt of vectors of a row, without what the target subtracts. An axis that is not asked for is left out: 0 times its
// exponential may be NaN.
template <typename acc_t>
struct RowGradient {
  const ScoreFactors<acc_t>& f;
  acc_t maximum, factor;
  ICM_INLINE Vec<acc_t> operator()(Vec<acc_t> t, Vec<acc_t> column_maximum, Vec<acc_t> column_factor) const {
    Vec<acc_t> d = {};
    if (f.class_axis) d += exp2<acc_t>(shifted(t, maximum)) * factor;
    if (f.pair_axis) d += exp2<acc_t>((t - column_maximum) * acc_t(kLog2E)) * column_factor;
    return d;
  }
};

template <typename scalar_t>
void gradient(const ScoreBlock<scalar_t>& s, int64_t begin, int64_t end,
              const ScoreFactors<acc_type<scalar_t>>& f, acc_type<scalar_t>* dscale) {
  using acc_t = acc_type<scalar_t>;
  for (int64_t i = begin; i < end; ++i) {
    scalar_t* row = s.scores + i * s.columns;
    const RowGradient<acc_t> row_gradient{f, f.row_maximum[i], f.row_factor[i]};
    const int64_t own = s.diagonal + i;
    const acc_t own_score = to_acc(row[own]);
    // Formed again by itself: p - 1 before it is rounded.
    const acc_t own_gradient = row_gradient(broadcast(own_score * s.scale), broadcast(f.column_maximum[own]),
                                            broadcast(f.column_factor[own]))[0] -
                               f.own_loss[i];
    Vec<acc_t> products = {};
    // The last vector overlaps the one before it, whose scores it must still find.
    const int64_t columns = s.columns, tail = columns - kLanes<acc_t>;
    const Vec<acc_t> last = tail > 0 ? load_acc(row + tail) : Vec<acc_t>{};
    for_each_position<acc_t>(columns, [&](int64_t j, IVec<acc_t> keep) ICM_LAMBDA_INLINE {
      const Vec<acc_t> score = j == tail && tail > 0 ? last : load_in_row(row, columns, j);
      const Vec<acc_t> d = row_gradient(score * s.scale, load_in_row(f.column_maximum, columns, j),
                                        load_in_row(f.column_factor, columns, j));
      if (dscale != nullptr)
        products +=
            select<acc_t>(keep & (d != acc_t(0)) & (score != kLowest<acc_t>), d * score, Vec<acc_t>{});
      store_in_row(row, columns, j, d * s.scale);
    });
    from_acc(own_gradient * s.scale, row + own);
    if (dscale == nullptr) continue;
    acc_t sum = sum_lanes<acc_t>(products);
    // A score of -inf stays what it is at any positive scale, and adds nothing.
    if (f.own_loss[i] != acc_t(0) && own_score != kLowest<acc_t>) sum -= f.own_loss[i] * own_score;
    dscale[i] = sum;
  }
}

template <typename scalar_t>
constexpr ScoreLossKernels<scalar_t> table() {
  return {sums<scalar_t>, merge<scalar_t>, gradient<scalar_t>};
}

}  // namespace

extern const ScoreLossKernels<float> score_loss_float = table<float>();
extern const ScoreLossKernels<double> score_loss_double = table<double>();
extern const ScoreLossKernels<bfloat16> score_loss_bfloat16 = table<bfloat16>();
extern const ScoreLossKernels<float16> score_loss_float16 = table<float16>();

}  // namespace icm::ICM_ISA
