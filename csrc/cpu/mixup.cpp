// Mixing on the CPU: memory, threads and the order of runs. The arithmetic is in kernels/mixup.cpp, the equations
// in ../mixup_math.h, checks and allocation in ../mixup_operators.h.
#include "kernels/mixup.h"

#include <cstring>

#include "../mixup_operators.h"
#include "huge_pages.h"
#include "instruction_set.h"
#include "mixup_runs.h"
#include "tensors.h"

namespace icm {

ICM_DECLARE_KERNELS(MixupKernels, mixup)
ICM_DECLARE_KERNELS(PixelKernels, pixels)

namespace {

// What one sample adds to a sum: weight `outside` everywhere but in the box.
template <typename scalar_t>
struct Term {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* source;
  acc_t outside, inside;
  Box box;
};

template <typename scalar_t>
struct Scratch {
  using acc_t = acc_type<scalar_t>;
  Term<scalar_t>* terms;
  const scalar_t** sources;
  acc_t* weights;

  void reserve(Workspace& workspace, int64_t count) {
    workspace.reserve(count, &terms);
    workspace.reserve(count, &sources);
    workspace.reserve(count, &weights);
  }
  Scratch at(int64_t offset) const { return {terms + offset, sources + offset, weights + offset}; }
};

// What becomes of each sample, and the order in which they are taken.
template <typename acc_t>
struct Plan {
  Sample<acc_t>* samples;
  int64_t* order;
  bool* taken;

  Plan(Workspace& workspace, int64_t batch) {
    workspace.reserve(batch, &samples);
    workspace.reserve(batch, &order);
    workspace.reserve(batch, &taken);
  }
  Plan(const Plan&) = delete;  // the workspace knows its address
  void fill(const Partners& partners, const SampleLayout& layout) {
    prepare_samples(partners, layout, samples);
    order_by_partner(samples, partners.batch, order, taken);
  }
};

template <typename scalar_t>
void sum_terms(const Scratch<scalar_t>& s, int64_t terms, const SampleLayout& layout, int64_t begin,
               int64_t end, scalar_t* out, bool stream, Ahead<scalar_t> ahead = {}) {
  for (int64_t e = begin; e < end;) {
    int64_t next = end, count = 0;
    for (int64_t t = 0; t < terms; ++t) {
      const Run run = run_at(s.terms[t].box, layout, e);
      next = std::min(next, run.end);
      const auto weight = run.inside ? s.terms[t].inside : s.terms[t].outside;
      if (weight == 0) continue;
      s.sources[count] = s.terms[t].source + e;
      s.weights[count++] = weight;
    }
    const bool past = stream && (next - e) * int64_t(sizeof(scalar_t)) >= kLeastStreamBytes;
    const bool whole = e == begin && next == end;
    mixup_kernels<scalar_t>().weighted_sum(s.sources, s.weights, count, next - e, out + e, past,
                                           whole ? ahead : Ahead<scalar_t>{});
    e = next;
  }
}

template <typename scalar_t>
void mix(const Mixing& m) {
  const SampleLayout& layout = m.layout;
  using acc_t = acc_type<scalar_t>;
  const int64_t batch = m.partners.batch, offset = m.keep_clean ? batch : 0;
  const auto from = samples<const scalar_t>(m.x);
  const auto to = samples<scalar_t>(m.out);
  const Chunks chunks(layout.size, sizeof(scalar_t));
  const int64_t threads = thread_count(chunks.count * batch, m.out.numel());
  const bool stream = streams(m.out);
  Workspace workspace;
  Scratch<scalar_t> scratch;
  Plan<acc_t> plan(workspace, batch);
  scratch.reserve(workspace, 2 * threads);
  workspace.allocate();
  plan.fill(m.partners, layout);
  const Box none{0, 0, 0, 0};
  // What a piece reads that the one before it did not.
  const auto fresh = [&](const Piece& p) -> const scalar_t* {
    if (p.sample < 0 || is_bad(plan.samples[p.sample].weights)) return nullptr;
    const Sample<acc_t>& sample = plan.samples[p.sample];
    return from[sample.weights.partner == 0 ? p.sample : sample.partner] + p.begin;
  };

  for_each_chunk(chunks, plan.order, batch, layout.size, threads,
                 [&](int64_t thread, const Piece& piece, const Piece& next) {
                   const auto [i, begin, end] = piece;
                   const Scratch<scalar_t> s = scratch.at(2 * thread);
                   const Sample<acc_t>& sample = plan.samples[i];
                   if (m.keep_clean) {
                     s.terms[0] = {from[i], acc_t(1), acc_t(1), none};
                     sum_terms(s, 1, layout, begin, end, to[i], stream);
                   }
                   if (is_bad(sample.weights)) return fill_nan(to[offset + i] + begin, end - begin);
                   // The box is written over the rest while that is in the cache: rows of a box are too short to
                   // cut the whole sample into runs at each of their ends.
                   const bool boxed = sample.box.y2 > 0;
                   scalar_t* out = to[offset + i];
                   s.terms[0] = {from[sample.partner], sample.weights.partner, acc_t(0), none};
                   s.terms[1] = {from[i], sample.weights.own, acc_t(0), none};
                   sum_terms(s, 2, layout, begin, end, out, stream && !boxed, {fresh(piece), fresh(next)});
                   for_each_box_row(sample.box, layout, begin, end, [&](int64_t first, int64_t last) {
                     std::memcpy(out + first, from[sample.partner] + first,
                                 size_t(last - first) * sizeof(scalar_t));
                   });
                 });
}

// Scale and shift of each channel.
template <typename acc_t>
struct Pixels {
  acc_t *scale, *shift;
  SampleLayout layout;

  void reserve(Workspace& workspace) {
    workspace.reserve(layout.channels + kPixelTablePadding, &scale);
    workspace.reserve(layout.channels + kPixelTablePadding, &shift);
  }
  void fill(const FloatVector& mean, const FloatVector& std) {
    for (int64_t c = 0; c < layout.channels + kPixelTablePadding; ++c) {
      const int64_t channel = c % layout.channels;
      scale[c] = acc_t(pixel_scale(std.at<double>(channel)));
      shift[c] = acc_t(pixel_shift(mean.at<double>(channel), std.at<double>(channel)));
    }
  }
  // The table for element e, and the end of the run that it serves.
  PixelTable<acc_t> at(int64_t e, int64_t* end) const {
    if (layout.channel_stride == 1) return {scale, shift, layout.channels, e % layout.channels};
    const int64_t line = e / layout.channel_stride, c = line % layout.channels;
    *end = std::min(*end, (line + 1) * layout.channel_stride);
    return {scale + c, shift + c, 1, 0};
  }
};

template <typename out_t>
void normalise_run(const uint8_t* own, const uint8_t* partner, MixWeights<acc_type<out_t>> w,
                   const Pixels<acc_type<out_t>>& pixels, int64_t begin, int64_t end, out_t* out,
                   bool stream) {
  for (int64_t e = begin; e < end;) {
    int64_t next = end;
    const auto table = pixels.at(e, &next);
    const bool past = stream && (next - e) * int64_t(sizeof(out_t)) >= kLeastStreamBytes;
    pixels_kernels<out_t>().normalise(own + e, partner + e, w.own, w.partner, table, next - e, out + e, past);
    e = next;
  }
}

template <typename out_t>
void mix_pixels(const Mixing& m) {
  const SampleLayout& layout = m.layout;
  using acc_t = acc_type<out_t>;
  const int64_t batch = m.partners.batch, offset = m.keep_clean ? batch : 0;
  const auto from = samples<const uint8_t>(m.x);
  const auto to = samples<out_t>(m.out);
  const Chunks chunks(layout.size, sizeof(out_t));
  const int64_t threads = thread_count(chunks.count * batch, m.out.numel());
  const bool stream = streams(m.out);
  Workspace workspace;
  Plan<acc_t> plan(workspace, batch);
  Pixels<acc_t> pixels{nullptr, nullptr, layout};
  pixels.reserve(workspace);
  workspace.allocate();
  plan.fill(m.partners, layout);
  pixels.fill(m.mean, m.std);

  const MixWeights<acc_t> clean{1, 0}, boxed{0, 1};
  for_each_chunk(chunks, plan.order, batch, layout.size, threads,
                 [&](int64_t, const Piece& piece, const Piece&) {
                   const auto [i, begin, end] = piece;
                   if (m.keep_clean)
                     normalise_run(from[i], from[i], clean, pixels, begin, end, to[i], stream);
                   const Sample<acc_t>& sample = plan.samples[i];
                   out_t* out = to[offset + i];
                   if (is_bad(sample.weights)) return fill_nan(out + begin, end - begin);
                   const uint8_t* partner = from[sample.partner];
                   normalise_run(from[i], partner, sample.weights, pixels, begin, end, out,
                                 stream && sample.box.y2 == 0);
                   for_each_box_row(sample.box, layout, begin, end, [&](int64_t first, int64_t last) {
                     normalise_run(from[i], partner, boxed, pixels, first, last, out, false);
                   });
                 });
}

template <typename scalar_t>
void unmix(const Mixing& m) {
  const SampleLayout& layout = m.layout;
  using acc_t = acc_type<scalar_t>;
  const int64_t batch = m.partners.batch;
  const auto clean = samples<const scalar_t>(m.x);
  const Samples<const scalar_t> mixed{clean[m.keep_clean ? batch : 0], clean.stride};
  const auto to = samples<scalar_t>(m.out);
  const Chunks chunks(layout.size, sizeof(scalar_t));
  const int64_t threads = thread_count(chunks.count * batch, 2 * m.out.numel()), most = batch + 2;
  const bool stream = streams(m.out);
  Workspace workspace;
  int64_t *first, *next;
  Scratch<scalar_t> scratch;
  Plan<acc_t> plan(workspace, batch);
  workspace.reserve(batch, &first);
  workspace.reserve(batch, &next);
  scratch.reserve(workspace, most * threads);
  workspace.allocate();
  plan.fill(m.partners, layout);
  std::reverse(plan.order, plan.order + batch);  // here a sample reads those that it is the partner of
  fill(first, batch, int64_t(-1));
  for (int64_t k = batch; k-- > 0;) {  // from the last, so that the lists ascend
    const int64_t partner = plan.samples[k].partner;
    if (partner < 0 || partner >= batch || partner == k) continue;
    next[k] = first[partner];
    first[partner] = k;
  }
  const auto fresh = [&](const Piece& p) -> const scalar_t* {
    if (p.sample < 0) return nullptr;
    return mixed[first[p.sample] < 0 ? p.sample : first[p.sample]] + p.begin;
  };

  for_each_chunk(chunks, plan.order, batch, layout.size, threads,
                 [&](int64_t thread, const Piece& piece, const Piece& following) {
                   const auto [i, begin, end] = piece;
                   const Scratch<scalar_t> s = scratch.at(most * thread);
                   const Sample<acc_t>* const samples = plan.samples;
                   int64_t terms = 0;
                   if (m.keep_clean) s.terms[terms++] = {clean[i], acc_t(1), acc_t(1), Box{0, 0, 0, 0}};
                   s.terms[terms++] = {mixed[i], samples[i].weights.own, acc_t(0), samples[i].box};
                   for (int64_t k = first[i]; k >= 0; k = next[k])
                     s.terms[terms++] = {mixed[k], samples[k].weights.partner, acc_t(1), samples[k].box};
                   sum_terms(s, terms, layout, begin, end, to[i], stream, {fresh(piece), fresh(following)});
                 });
}

struct Cpu {
  static bool owns(const Tensor& tensor) { return tensor.is_cpu(); }
  static Tensor empty(const Shape& sizes, const Shape& strides, ScalarType type, const Tensor&) {
    Tensor result = new_strided(sizes, strides, type, aoti_torch_device_type_cpu(), 0);
    ask_for_huge_pages(result, kLargeBytes);
    return result;
  }
  static void mix(const char* op, const Mixing& m) {
    dispatch_floating(op, m.out, [&](auto zero) {
      if (m.x.scalar_type() == ScalarType::Byte)
        mix_pixels<decltype(zero)>(m);
      else
        icm::mix<decltype(zero)>(m);
    });
  }
  static void unmix(const char* op, const Mixing& m) {
    dispatch_floating(op, m.out, [&](auto zero) { icm::unmix<decltype(zero)>(m); });
  }
};

}  // namespace
}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CPU, m) {
  m.impl("mixup_fwd.cpu", TORCH_BOX(&icm::mixup_fwd<icm::Cpu>));
  m.impl("mixup_out.cpu", TORCH_BOX(&icm::mixup_out<icm::Cpu>));
  m.impl("mixup_bwd.cpu", TORCH_BOX(&icm::mixup_bwd<icm::Cpu>));
}
