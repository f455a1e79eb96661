// What the kernels of the Infinite Class Mixup loss read and write, and how their memory is divided.
//
// Rows are images, columns are mixed classes; the matrix may be rectangular (csrc/cpu/kernels/icm_loss.h says the
// same of the CPU). Kernels see a few rows at a time, in a tile (tile.h). Equations: ../../icm_math.h.
#pragma once

#include "../../float_vector.h"
#include "../../mixed_labels.h"
#include "../scalar_types.h"

namespace icm {

// A column's classes by slot (their rank among the used classes) and their weights. A pure class has w_a = 1,
// w_b = 0 and the zero slot; padding has the slot of -inf, so that its exponential is 0 without a test.
template <typename acc_t>
struct alignas(sizeof(acc_t) == 4 ? 16 : 8) Column {
  int32_t slot_a, slot_b;
  acc_t w_a, w_b;
};

// A column as one of its classes sees it: the other class's slot, and the weight of class a, whichever the own one is;
// that of class b is partner_weight(w_a), with the same bits. As wide as two weights: no byte of it is undefined.
template <typename acc_t>
struct alignas(2 * sizeof(acc_t)) Entry {
  std::conditional_t<sizeof(acc_t) == 4, int32_t, int64_t> other;
  acc_t w_a;
};

// One number for each row that a lane works on at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) PerRow {
  T of[kCount];
};

// Slots after those of the used classes.
inline constexpr int kZeroSlot = 0, kPaddingSlot = 1, kExtraSlots = 2;

ICM_HOST_DEVICE int64_t column_blocks(int64_t columns) { return (columns + kWarp - 1) / kWarp; }

// Statistics of rows and columns, as the operators return them: log2 of a sum is (offset + shift) * sigma + log2(sum);
// all columns have the same offset. A shift is 0 and a weight is not NaN unless the batch was repaired.
template <typename acc_t>
struct LogSum {
  acc_t *offset, *shift, *sum;
};
template <typename acc_t>
struct RowSums : LogSum<acc_t> {
  acc_t* weight;
};

enum class LogitType : int32_t { kFloat, kDouble, kBFloat16, kFloat16 };

struct Logits {
  const void* values;
  LogitType type;
  int64_t rows, classes, row_stride, class_stride;
  int64_t diagonal;   // image i owns column diagonal + i
  FloatVector scale;  // 0-d, or both pointers null
};

// The factor of the scores, as the exponent needs it.
template <typename acc_t>
struct Scale {
  acc_t value, sign, sigma;
  __device__ __forceinline__ explicit Scale(const FloatVector& scale)
      : value(scale.as_float == nullptr && scale.as_double == nullptr ? acc_t(1)
                                                                      : scale.template at<acc_t>(0)) {
    sign = value < 0 ? acc_t(-1) : acc_t(1);
    sigma = (value < 0 ? -value : value) * acc_t(kLog2E);
  }
};

// What is derived from the target, once per batch: kept for the backward pass.
//   header   kHeaderWords words
//   columns  one Column each, padded to whole warps
//   present  class of each slot, ascending
//   first    where the entries of (slot, role) begin, role 0 where the class is the column's a, 1 where it is b; one
//            more at the end
//   owners   column of each entry
//   entries  sorted by slot, role and column
inline constexpr int kHeaderWords = 16;
enum HeaderWord { kIsInvalid = 0, kUsedClasses = 1 };

template <typename acc_t>
struct Plan {
  int32_t* header;
  Column<acc_t>* columns;
  int32_t *present, *first, *owners;
  Entry<acc_t>* entries;
  int32_t* end;
};

// int32 words of a plan, that icm_fast/operators/icm_loss.py announces; take_plan needs at most so many.
ICM_HOST_DEVICE int64_t plan_words(int64_t columns) { return 256 + 24 * columns; }

// Hands out aligned pieces of one allocation; with a null base it only counts.
class Arena {
 public:
  ICM_HOST_DEVICE explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <typename T>
  ICM_HOST_DEVICE T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(base_ + used_);
    used_ += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return result;
  }
  ICM_HOST_DEVICE size_t bytes() const { return used_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

ICM_HOST_DEVICE int64_t most_slots(int64_t columns, int64_t classes) {
  return 2 * columns < classes ? 2 * columns : classes;
}

template <typename acc_t>
ICM_HOST_DEVICE Plan<acc_t> take_plan(Arena& arena, int64_t columns, int64_t classes) {
  const int64_t slots = most_slots(columns, classes);
  Plan<acc_t> plan;
  plan.header = arena.take<int32_t>(kHeaderWords);
  plan.columns = arena.take<Column<acc_t>>(column_blocks(columns) * kWarp);
  plan.present = arena.take<int32_t>(slots);
  plan.first = arena.take<int32_t>(2 * slots + 1);
  plan.owners = arena.take<int32_t>(2 * columns);
  plan.entries = arena.take<Entry<acc_t>>(2 * columns);
  plan.end = plan.header + plan_words(columns);
  return plan;
}

// The loss as the operators return it, and what its terms are summed from.
template <typename acc_t>
struct LossOutput {
  acc_t *loss, *terms;  // terms: class axis, then pair axis
  bool class_axis, pair_axis;
  int32_t reduction;  // 0 none, 1 mean, 2 sum
};

template <typename acc_t>
__device__ __forceinline__ acc_t infinity() {
  return acc_t(__builtin_huge_val());
}
template <typename acc_t>
__device__ __forceinline__ acc_t not_a_number() {
  return acc_t(__builtin_nan(""));
}
template <typename acc_t>
ICM_HOST_DEVICE constexpr acc_t largest_finite() {
  return sizeof(acc_t) == 4 ? acc_t(3.402823466e+38f) : acc_t(1.7976931348623157e308);
}

}  // namespace icm
