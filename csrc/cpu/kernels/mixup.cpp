// Mixing, spec section 3: weighted sums of samples and normalisation of uint8 pixels, over runs of elements.
// Equations in ../../mixup_math.h. Elements beyond the last whole vector go through a buffer of one vector, so that
// every element has the same formula and the same bits wherever it lies.
#include "mixup.h"

#include "../../mixup_math.h"
#include "packs.h"

namespace icm::ICM_ISA {
namespace {

// Elements before the first address of whole vectors: only a streamed store needs it.
template <typename scalar_t>
ICM_INLINE int64_t head_count(const scalar_t* out, int64_t count, bool stream) {
  constexpr uintptr_t bytes = uintptr_t(kVectorBytes);
  const int64_t head = int64_t((bytes - uintptr_t(out) % bytes) % bytes / sizeof(scalar_t));
  return !stream ? 0 : head < count ? head : count;
}

// whole(k) for whole packs, part(k, n) for fewer elements at either end.
template <typename scalar_t, typename Whole, typename Part>
ICM_INLINE void for_each_pack(const scalar_t* out, int64_t count, bool stream, const Whole& whole,
                              const Part& part) {
  constexpr int64_t step = kPackElements<scalar_t>;
  int64_t k = head_count(out, count, stream);
  if (k > 0) part(int64_t(0), k);
  for (; k + step <= count; k += step) whole(k);
  if (k < count) part(k, count - k);
}

// How far ahead of its use memory is asked for what no prefetcher foresees, the beginnings of runs above all. 8 to 64 KB
// were alike; 2 KB lost a quarter and 4 KB a tenth where memory was at its fastest.
inline constexpr int64_t kAheadBytes = 16 << 10;

// Asks for what comes kAheadBytes after element k of a run, in the next run where this one ends before.
template <typename scalar_t>
class Asker {
 public:
  ICM_INLINE Asker(Ahead<scalar_t> ahead, const scalar_t* first, int64_t count) {
    constexpr int64_t most = kAheadBytes / int64_t(sizeof(scalar_t));
    const int64_t distance = most < count ? most : count;
    const scalar_t* here = ahead.here != nullptr ? ahead.here : first;  // again, if nothing else: harmless
    last_ = count - distance;
    here_ = uintptr_t(here + distance);
    next_ = uintptr_t(ahead.next != nullptr ? ahead.next : here) - uintptr_t(last_) * sizeof(scalar_t);
  }
  ICM_INLINE void operator()(int64_t k) const {
    __builtin_prefetch(
        reinterpret_cast<const void*>((k < last_ ? here_ : next_) + uintptr_t(k) * sizeof(scalar_t)));
  }

 private:
  int64_t last_;
  uintptr_t here_, next_;
};

template <typename T>
ICM_INLINE void copy_elements(T* to, const T* from, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = from[k];
}

template <int kCount, bool kStream, typename scalar_t>
ICM_INLINE void sum_sources(const scalar_t* const* sources, const acc_type<scalar_t>* weights,
                            int64_t sources_count, int64_t count, scalar_t* out, Ahead<scalar_t> ahead) {
  using acc_t = acc_type<scalar_t>;
  constexpr int vectors = Pack<scalar_t>::kVectors;
  const int64_t n = kCount > 0 ? kCount : sources_count;
  Vec<acc_t> w[kCount > 0 ? kCount : 1];
  for (int s = 0; s < kCount; ++s) w[s] = broadcast(weights[s]);
  const auto weight = [&](int64_t s) ICM_LAMBDA_INLINE { return kCount > 0 ? w[s] : broadcast(weights[s]); };
  const auto sum = [&](const auto& source) ICM_LAMBDA_INLINE {
    Pack<scalar_t> pack = load_pack(source(0));
    for (int v = 0; v < vectors; ++v) pack.v[v] = weight(0) * pack.v[v];
    for (int64_t s = 1; s < n; ++s) {
      const Pack<scalar_t> term = load_pack(source(s));
      for (int v = 0; v < vectors; ++v) pack.v[v] = fma(weight(s), term.v[v], pack.v[v]);
    }
    return pack_bits(pack);
  };
  const Asker<scalar_t> ask(ahead, sources[0], count);

  for_each_pack(
      out, count, kStream,
      [&](int64_t k) ICM_LAMBDA_INLINE {
        if constexpr (kStream) ask(k);
        const Vec<float> bits = sum([&](int64_t s) ICM_LAMBDA_INLINE { return sources[s] + k; });
        if constexpr (kStream)
          stream_bits(out + k, bits);
        else
          __builtin_memcpy(out + k, &bits, sizeof(bits));
      },
      [&](int64_t k, int64_t valid) {
        scalar_t elements[kPackElements<scalar_t>] = {};
        const Vec<float> bits = sum([&](int64_t s) ICM_LAMBDA_INLINE {
          copy_elements(elements, sources[s] + k, valid);
          return static_cast<const scalar_t*>(elements);
        });
        __builtin_memcpy(elements, &bits, sizeof(bits));
        copy_elements(out + k, elements, valid);
      });
}

// A copy of bits, past the caches.
template <typename scalar_t>
void stream_copy(const scalar_t* from, int64_t count, scalar_t* out, Ahead<scalar_t> ahead) {
  const Asker<scalar_t> ask(ahead, from, count);
  for_each_pack(
      out, count, true,
      [&](int64_t k) ICM_LAMBDA_INLINE {
        ask(k);
        Vec<float> bits;
        __builtin_memcpy(&bits, from + k, sizeof(bits));
        stream_bits(out + k, bits);
      },
      [&](int64_t k, int64_t valid) { copy_elements(out + k, from + k, valid); });
}

template <typename scalar_t>
void weighted_sum(const scalar_t* const* sources, const acc_type<scalar_t>* weights, int64_t sources_count,
                  int64_t count, scalar_t* out, bool stream, Ahead<scalar_t> ahead) {
  if (sources_count == 0) {
    __builtin_memset(out, 0, size_t(count) * sizeof(scalar_t));
  } else if (sources_count == 1 && weights[0] == 1) {
    if (stream)
      stream_copy(sources[0], count, out, ahead);
    else
      __builtin_memcpy(out, sources[0], size_t(count) * sizeof(scalar_t));
  } else if (sources_count == 2) {
    if (stream)
      sum_sources<2, true>(sources, weights, 2, count, out, ahead);
    else
      sum_sources<2, false>(sources, weights, 2, count, out, ahead);
  } else {
    if (stream)
      sum_sources<0, true>(sources, weights, sources_count, count, out, ahead);
    else
      sum_sources<0, false>(sources, weights, sources_count, count, out, ahead);
  }
}

// kLanes pixels as acc_t.
ICM_INLINE Vec<float> load_pixels(const uint8_t* p, float) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  typedef uint8_t bytes __attribute__((vector_size(kLanes<float>)));
  bytes b;
  __builtin_memcpy(&b, p, sizeof(b));
  return __builtin_convertvector(__builtin_convertvector(b, IVec<float>), Vec<float>);
#endif
}
ICM_INLINE Vec<double> load_pixels(const uint8_t* p, double) {
  double lanes[kLanes<double>];
  for (int k = 0; k < kLanes<double>; ++k) lanes[k] = double(p[k]);
  return load(lanes);
}

enum class Sources { kOwn, kPartner, kBoth };

template <Sources kSources, bool kOneChannel, bool kStream, typename out_t>
ICM_INLINE void normalise_run(const uint8_t* own, const uint8_t* partner, acc_type<out_t> w_own,
                              acc_type<out_t> w_partner, PixelTable<acc_type<out_t>> table, int64_t count,
                              out_t* out) {
  using acc_t = acc_type<out_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const Vec<acc_t> w_a = broadcast(w_own), w_b = broadcast(w_partner);
  const Vec<acc_t> one_scale = broadcast(table.scale[0]), one_shift = broadcast(table.shift[0]);
  int64_t phase = table.phase;
  const int64_t step = kOneChannel ? 0 : lanes % table.period;
  const auto pixels = [&](const uint8_t* a, const uint8_t* b) ICM_LAMBDA_INLINE {
    Pack<out_t> pack;
    for (int v = 0; v < Pack<out_t>::kVectors; ++v, a += lanes, b += lanes) {
      Vec<acc_t> mix;
      if constexpr (kSources == Sources::kOwn) mix = load_pixels(a, acc_t());
      if constexpr (kSources == Sources::kPartner) mix = load_pixels(b, acc_t());
      if constexpr (kSources == Sources::kBoth)
        mix = mix_values(w_a, load_pixels(a, acc_t()), w_b, load_pixels(b, acc_t()), Fma());
      const Vec<acc_t> scale = kOneChannel ? one_scale : load(table.scale + phase);
      const Vec<acc_t> shift = kOneChannel ? one_shift : load(table.shift + phase);
      pack.v[v] = fma(mix, scale, shift);
      if constexpr (!kOneChannel) {
        phase += step;
        phase -= phase >= table.period ? table.period : 0;
      }
    }
    return bits_in_order(pack);
  };
  for_each_pack(
      out, count, kStream,
      [&](int64_t k) ICM_LAMBDA_INLINE {
        const Vec<float> bits = pixels(own + k, partner + k);
        if constexpr (kStream)
          stream_bits(out + k, bits);
        else
          __builtin_memcpy(out + k, &bits, sizeof(bits));
      },
      [&](int64_t k, int64_t valid) {
        uint8_t a[kPackElements<out_t>] = {}, b[kPackElements<out_t>] = {};
        out_t elements[kPackElements<out_t>];
        if constexpr (kSources != Sources::kPartner) copy_elements(a, own + k, valid);
        if constexpr (kSources != Sources::kOwn) copy_elements(b, partner + k, valid);
        const int64_t next = kOneChannel ? 0 : (phase + valid) % table.period;
        const Vec<float> bits = pixels(a, b);
        phase = next;
        __builtin_memcpy(elements, &bits, sizeof(bits));
        copy_elements(out + k, elements, valid);
      });
}

template <Sources kSources, typename out_t, typename... Args>
ICM_INLINE void normalise_from(int64_t period, bool stream, Args... args) {
  if (period == 1) {
    if (stream)
      normalise_run<kSources, true, true, out_t>(args...);
    else
      normalise_run<kSources, true, false, out_t>(args...);
  } else if (stream) {
    normalise_run<kSources, false, true, out_t>(args...);
  } else {
    normalise_run<kSources, false, false, out_t>(args...);
  }
}

template <typename out_t>
void normalise(const uint8_t* own, const uint8_t* partner, acc_type<out_t> w_own, acc_type<out_t> w_partner,
               PixelTable<acc_type<out_t>> table, int64_t count, out_t* out, bool stream) {
  if (w_partner == 0)
    normalise_from<Sources::kOwn, out_t>(table.period, stream, own, partner, w_own, w_partner, table, count,
                                         out);
  else if (w_own == 0)
    normalise_from<Sources::kPartner, out_t>(table.period, stream, own, partner, w_own, w_partner, table,
                                             count, out);
  else
    normalise_from<Sources::kBoth, out_t>(table.period, stream, own, partner, w_own, w_partner, table, count,
                                          out);
}

}  // namespace

extern const MixupKernels<float> mixup_float = {weighted_sum<float>};
extern const MixupKernels<double> mixup_double = {weighted_sum<double>};
extern const MixupKernels<bfloat16> mixup_bfloat16 = {weighted_sum<bfloat16>};
extern const MixupKernels<float16> mixup_float16 = {weighted_sum<float16>};
extern const PixelKernels<float> pixels_float = {normalise<float>};
extern const PixelKernels<double> pixels_double = {normalise<double>};
extern const PixelKernels<bfloat16> pixels_bfloat16 = {normalise<bfloat16>};
extern const PixelKernels<float16> pixels_float16 = {normalise<float16>};

}  // namespace icm::ICM_ISA
