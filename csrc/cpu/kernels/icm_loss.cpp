// Infinite Class Mixup on the CPU: sums, loss terms and gradient of tiles of rows.
//
// Equations: icm_math.h. Parallel over groups of rows; inside, a tile of rows lies across the lanes
// and the columns are walked one by one. Traffic: logits once per pass, gradient once; the score
// matrix exists only as one vector at a time. Deterministic: a fixed order for a given shape,
// whatever the number of threads.
#include "icm_loss_gradient.h"
#include "icm_loss_repair.h"
#include "icm_loss_sums.h"
#include "softmax.h"

namespace icm::ICM_ISA {
namespace {

template <typename scalar_t>
void terms(const Scores<scalar_t>& s, int64_t begin, int64_t end, bool repaired,
           RowSums<acc_type<scalar_t>> rows, LogSum<acc_type<scalar_t>> columns,
           Diagonal<acc_type<scalar_t>> diagonal, acc_type<scalar_t>* row_term,
           acc_type<scalar_t>* column_term) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  for (int64_t i = begin; i < end; i += L) {
    const int valid = int(end - i < L ? end - i : L);
    const int64_t j = s.diagonal + i;
    const auto rows_at = [&](const acc_t* p) { return load_rows<acc_t, 1>(p + i, valid).v[0]; };
    const auto columns_at = [&](const acc_t* p) { return load_rows<acc_t, 1>(p + j, valid).v[0]; };
    // d and y: log2 of the target's exponential in its row's and in its column's sum.
    Vec<acc_t> d = rows_at(diagonal.row), y, target;
    if (repaired) {
      d = (d - rows_at(rows.shift)) * s.sigma;
      y = (rows_at(diagonal.column) - columns_at(columns.shift)) * s.sigma;
      target = exp2<acc_t>(y);
    } else {  // formed as in the sums: an exponential times the row's weight
      y = d + (rows_at(rows.offset) - columns_at(columns.offset)) * s.sigma;
      target = rows_at(rows.weight) * rows_at(diagonal.exponential);
    }
    const Vec<acc_t> own = repaired ? exp2<acc_t>(d) : rows_at(diagonal.exponential);
    const Vec<acc_t> row = log_ratio<acc_t>(rows_at(rows.sum), own, d);
    const Vec<acc_t> column = log_ratio<acc_t>(columns_at(columns.sum), target, y);
    store_rows<acc_t, 1>({{row * acc_t(kLn2)}}, row_term + i, valid);
    store_rows<acc_t, 1>({{column * acc_t(kLn2)}}, column_term + i, valid);
  }
}

template <typename scalar_t>
constexpr IcmLossKernels<scalar_t> table() {
  return {kTileRows<acc_type<scalar_t>, kMostTileVectors>,
          scratch_size<scalar_t>,
          sums<scalar_t>,
          maxima<scalar_t>,
          shifted_sums<scalar_t>,
          terms<scalar_t>,
          gradient<scalar_t>};
}

}  // namespace

extern const IcmLossKernels<float> icm_loss_float = table<float>();
extern const IcmLossKernels<double> icm_loss_double = table<double>();
extern const IcmLossKernels<bfloat16> icm_loss_bfloat16 = table<bfloat16>();
extern const IcmLossKernels<float16> icm_loss_float16 = table<float16>();

}  // namespace icm::ICM_ISA
