// Prepares the mixed classes of a batch (../mixed_labels.h), one per column.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../mixed_labels.h"
#include "kernels/icm_loss.h"
#include "workspace.h"

namespace icm {

template <typename acc_t>
struct ColumnBuffers {
  int32_t *slot_a, *slot_b, *slot_of;
  acc_t *w_a, *w_b;
  int64_t* present;

  void reserve(Workspace& workspace, int64_t count, int64_t classes) {
    workspace.reserve(count, &slot_a);
    workspace.reserve(count, &slot_b);
    workspace.reserve(count, &w_a);
    workspace.reserve(count, &w_b);
    workspace.reserve(classes, &slot_of);
    workspace.reserve(std::min(2 * count, classes), &present);
  }
};

// Returns false when the target is invalid.
template <typename acc_t>
bool prepare_columns(const MixedLabels& labels, int64_t classes, const ColumnBuffers<acc_t>& buffers,
                     Columns<acc_t>* columns) {
  std::fill(buffers.slot_of, buffers.slot_of + classes, -1);
  for (int64_t j = 0; j < labels.count; ++j) {
    const MixedClass<acc_t> mixed = mixed_class<acc_t>(labels, j, classes);
    if (!mixed.valid) return false;
    buffers.slot_a[j] = int32_t(mixed.a);
    buffers.slot_b[j] = int32_t(mixed.b);
    buffers.w_a[j] = mixed.w_a;
    buffers.w_b[j] = mixed.w_b;
    buffers.slot_of[mixed.a] = buffers.slot_of[mixed.b] = 0;
  }
  int32_t used = 0;
  for (int64_t c = 0; c < classes; ++c)
    if (buffers.slot_of[c] == 0) {
      buffers.present[used] = c;
      buffers.slot_of[c] = used++;
    }
  for (int64_t j = 0; j < labels.count; ++j) {
    buffers.slot_a[j] = buffers.slot_of[buffers.slot_a[j]];
    buffers.slot_b[j] = buffers.w_b[j] == acc_t(0) ? used : buffers.slot_of[buffers.slot_b[j]];
  }
  *columns = {labels.count, buffers.slot_a, buffers.slot_b,  buffers.w_a,
              buffers.w_b,  used,           buffers.present, used == classes ? nullptr : buffers.slot_of};
  return true;
}

// Columns, and columns per used class, from which on it pays to sort them; and per class, to form factors. (128 of 100
// classes took 1 us of 19 longer sorted.)
inline constexpr int64_t kLeastSorted = 256;
inline constexpr double kWorthSorting = 1.2, kWorthFactoring = 2;

template <typename acc_t>
struct SortedBuffers {
  int32_t *slot_a, *slot_b, *begin, *of_column, *order, *by_b, *starts, *next;
  acc_t *w_a, *w_b;

  void reserve(Workspace& workspace, int64_t count, int64_t classes) {
    const int64_t keys = std::max(count, std::min(2 * count, classes)) + 2;
    for (int32_t** out : {&slot_a, &slot_b, &begin, &of_column, &order, &by_b, &starts, &next})
      workspace.reserve(keys, out);
    workspace.reserve(count, &w_a);
    workspace.reserve(count, &w_b);
  }
};

// Writes 0, 1, ... or `in` to `out`, sorted by key in [0, keys) and otherwise in order.
template <typename Key>
void counting_sort(int64_t count, int64_t keys, const Key& key, int32_t* next, const int32_t* in,
                   int32_t* out) {
  std::fill(next, next + keys + 1, 0);
  for (int64_t j = 0; j < count; ++j) ++next[key(j) + 1];
  for (int64_t k = 1; k < keys; ++k) next[k] += next[k - 1];
  for (int64_t j = 0; j < count; ++j) {
    const int32_t at = in == nullptr ? int32_t(j) : in[j];
    out[next[key(at)]++] = at;
  }
}

// As they came, each a first class of its own.
template <typename acc_t>
SortedColumns<acc_t> unsorted_columns(const Columns<acc_t>& columns, const SortedBuffers<acc_t>& buffers) {
  for (int32_t j = 0; j <= columns.count; ++j) buffers.begin[j] = j;
  return {columns.count, columns.slot_a, columns.slot_b, columns.w_a, columns.w_b, columns.count,
          buffers.begin, buffers.begin,  false,          acc_t(0),    acc_t(0)};
}

// What sorts a batch: the classes of a column, by slot, and the weights of a factored one.
template <typename acc_t>
struct ColumnOrder {
  const Columns<acc_t>& columns;
  bool factored, mixes;
  acc_t lam;

  ColumnOrder(const MixedLabels& labels, const Columns<acc_t>& of)
      : columns(of),
        factored(labels.lam_stride == 0 && double(of.count) >= kWorthFactoring * double(of.used)),
        lam(factored ? acc_t(labels.lam(0)) : acc_t(0)) {
    mixes = lam != acc_t(0) && partner_weight(lam) != acc_t(0);
  }
  int32_t a(int64_t j) const { return columns.slot_a[j]; }
  // A pure class among mixed ones is factored as a mixture with itself: all have the same weights.
  int32_t b(int64_t j) const {
    return mixes && columns.w_b[j] == acc_t(0) ? columns.slot_a[j] : columns.slot_b[j];
  }
  SortedColumns<acc_t> result(const SortedBuffers<acc_t>& buffers, int64_t count, int64_t firsts) const {
    return {count,
            buffers.slot_a,
            buffers.slot_b,
            buffers.w_a,
            buffers.w_b,
            firsts,
            buffers.begin,
            buffers.of_column,
            factored,
            mixes ? lam : acc_t(1),
            mixes ? partner_weight(lam) : acc_t(0)};
  }
};

// Factored columns of few classes, by a table of all pairs: a sort would wait again and again for the same few counters.
template <typename acc_t>
SortedColumns<acc_t> merge_columns(const ColumnOrder<acc_t>& order, const SortedBuffers<acc_t>& buffers) {
  const int64_t n = order.columns.count, width = order.columns.used + 1;
  const auto key = [&](int64_t j) { return order.a(j) * width + order.b(j); };
  int32_t* table = buffers.next;
  std::fill(table, table + width * width, 0);
  for (int64_t j = 0; j < n; ++j) ++table[key(j)];
  int32_t firsts = 0, count = 0;
  for (int64_t a = 0; a < width; ++a) {
    buffers.begin[firsts] = count;
    for (int64_t b = 0; b < width; ++b) {
      int32_t& entry = table[a * width + b];
      if (entry == 0) continue;
      buffers.slot_a[count] = int32_t(a);
      buffers.slot_b[count] = int32_t(b);
      buffers.w_a[count] = acc_t(entry);
      entry = count++;
    }
    firsts += buffers.begin[firsts] < count;
  }
  buffers.begin[firsts] = count;
  for (int64_t j = 0; j < n; ++j) buffers.of_column[j] = table[key(j)];
  return order.result(buffers, count, firsts);
}

template <typename acc_t>
SortedColumns<acc_t> sort_columns(const MixedLabels& labels, const Columns<acc_t>& columns,
                                  const SortedBuffers<acc_t>& buffers) {
  const int64_t n = columns.count;
  if (n < kLeastSorted || double(n) < kWorthSorting * double(columns.used))
    return unsorted_columns(columns, buffers);
  const ColumnOrder<acc_t> order(labels, columns);
  if (order.factored && (columns.used + 1) * (columns.used + 1) <= n) return merge_columns(order, buffers);
  const auto a = [&](int64_t j) { return order.a(j); };
  const auto b = [&](int64_t j) { return order.b(j); };
  const int32_t* by_b = nullptr;
  if (order.factored) {  // equal columns then stand side by side
    counting_sort(n, columns.used + 1, b, buffers.next, nullptr, buffers.by_b);
    by_b = buffers.by_b;
  }
  counting_sort(n, columns.used + 1, a, buffers.next, by_b, buffers.order);

  // Where each first class starts in that order, and the first classes by their number of columns.
  int32_t firsts = 0;
  for (int32_t p = 0; p < n; ++p)
    if (p == 0 || a(buffers.order[p]) != a(buffers.order[p - 1])) buffers.starts[firsts++] = p;
  buffers.starts[firsts] = int32_t(n);
  int32_t* by_number = buffers.by_b;  // free again
  const auto number = [&](int64_t f) { return buffers.starts[f + 1] - buffers.starts[f]; };
  counting_sort(firsts, n + 1, number, buffers.next, nullptr, by_number);

  int32_t count = 0;
  for (int32_t f = 0; f < firsts; ++f) {
    const int32_t first = buffers.starts[by_number[f]], last = buffers.starts[by_number[f] + 1];
    buffers.begin[f] = count;
    for (int32_t p = first; p < last; ++p) {
      const int32_t j = buffers.order[p];
      if (order.factored && p > first && buffers.slot_b[count - 1] == b(j)) {
        buffers.of_column[j] = count - 1;
        buffers.w_a[count - 1] += acc_t(1);
        continue;
      }
      buffers.of_column[j] = count;
      buffers.slot_a[count] = a(j);
      buffers.slot_b[count] = b(j);
      buffers.w_a[count] = order.factored ? acc_t(1) : columns.w_a[j];
      buffers.w_b[count++] = columns.w_b[j];
    }
  }
  buffers.begin[firsts] = count;
  return order.result(buffers, count, firsts);
}

}  // namespace icm
