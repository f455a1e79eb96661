// Mixing, spec section 3: weighted sums of samples and normalisation of uint8 pixels, over runs of elements.
// Equations in ../../mixup_math.h. Elements beyond the last whole vector go through a buffer of one vector, so that
// every element has the same formula and the same bits wherever it lies.
#include "mixup.h"

#include "../../mixup_math.h"
#include "convert.h"
#include "simd.h"

namespace icm::ICM_ISA {
namespace {

template <typename scalar_t>
inline constexpr int64_t kStep = kLanes<acc_type<scalar_t>>;

// Writes past the caches: a result larger than they are would only displace what is still needed, and a
// cached store first reads the line that it is about to overwrite.
template <typename scalar_t>
ICM_INLINE void stream_acc(scalar_t* p, Vec<acc_type<scalar_t>> v) {
#if defined(__x86_64__)
  constexpr int bytes = int(kStep<scalar_t> * sizeof(scalar_t));
  scalar_t lanes[kStep<scalar_t>];
  store_acc(lanes, v);
#if defined(__AVX512F__)
  if constexpr (bytes == 64) return _mm512_stream_si512((__m512i*)p, _mm512_loadu_si512(lanes));
#endif
#if defined(__AVX2__)
  if constexpr (bytes == 32)
    return _mm256_stream_si256((__m256i*)p, _mm256_loadu_si256((const __m256i*)lanes));
#endif
  if constexpr (bytes == 16) return _mm_stream_si128((__m128i*)p, _mm_loadu_si128((const __m128i*)lanes));
  long long bits;
  __builtin_memcpy(&bits, lanes, sizeof(bits));
  _mm_stream_si64((long long*)p, bits);
#else
  store_acc(p, v);
#endif
}

// Elements before the first whole vector of `out`: only a streamed store needs its alignment.
template <typename scalar_t>
ICM_INLINE int64_t head_count(const scalar_t* out, int64_t count, bool stream) {
  constexpr uintptr_t bytes = uintptr_t(kStep<scalar_t>) * sizeof(scalar_t);
  const int64_t head = int64_t((bytes - uintptr_t(out) % bytes) % bytes / sizeof(scalar_t));
  return !stream ? 0 : head < count ? head : count;
}

// vector(k) for whole vectors, part(k, n) for n < kStep elements at either end.
template <typename scalar_t, typename Whole, typename Part>
ICM_INLINE void for_each_vector(const scalar_t* out, int64_t count, bool stream, const Whole& whole,
                                const Part& part) {
  constexpr int64_t step = kStep<scalar_t>;
  int64_t k = head_count(out, count, stream);
  if (k > 0) part(int64_t(0), k);
  for (; k + step <= count; k += step) whole(k);
  if (k < count) part(k, count - k);
}

template <typename T>
ICM_INLINE void copy_elements(T* to, const T* from, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = from[k];
}

template <int kCount, bool kStream, typename scalar_t>
ICM_INLINE void sum_sources(const scalar_t* const* sources, const acc_type<scalar_t>* weights,
                            int64_t sources_count, int64_t count, scalar_t* out) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t step = kStep<scalar_t>;
  const int64_t n = kCount > 0 ? kCount : sources_count;
  Vec<acc_t> w[kCount > 0 ? kCount : 1];
  for (int s = 0; s < kCount; ++s) w[s] = broadcast(weights[s]);
  const auto weight = [&](int64_t s) ICM_LAMBDA_INLINE { return kCount > 0 ? w[s] : broadcast(weights[s]); };

  for_each_vector(
      out, count, kStream,
      [&](int64_t k) ICM_LAMBDA_INLINE {
        Vec<acc_t> sum = weight(0) * load_acc(sources[0] + k);
        for (int64_t s = 1; s < n; ++s) sum = fma(weight(s), load_acc(sources[s] + k), sum);
        if constexpr (kStream)
          stream_acc(out + k, sum);
        else
          store_acc(out + k, sum);
      },
      [&](int64_t k, int64_t valid) {
        scalar_t lanes[step] = {};
        copy_elements(lanes, sources[0] + k, valid);
        Vec<acc_t> sum = weight(0) * load_acc(lanes);
        for (int64_t s = 1; s < n; ++s) {
          copy_elements(lanes, sources[s] + k, valid);
          sum = fma(weight(s), load_acc(lanes), sum);
        }
        store_acc(lanes, sum);
        copy_elements(out + k, lanes, valid);
      });
}

// A copy of bits, past the caches.
void stream_copy(const char* from, int64_t bytes, char* out) {
  const int64_t unaligned = int64_t((kVectorBytes - uintptr_t(out) % kVectorBytes) % kVectorBytes);
  int64_t k = unaligned < bytes ? unaligned : bytes;
  __builtin_memcpy(out, from, size_t(k));
  for (; k + kVectorBytes <= bytes; k += kVectorBytes) {
    Vec<float> v;
    __builtin_memcpy(&v, from + k, sizeof(v));
    stream_acc(reinterpret_cast<float*>(out + k), v);
  }
  __builtin_memcpy(out + k, from + k, size_t(bytes - k));
}

template <typename scalar_t>
void copy(const scalar_t* from, int64_t count, scalar_t* out, bool stream) {
  const int64_t bytes = count * int64_t(sizeof(scalar_t));
  if (stream)
    stream_copy(reinterpret_cast<const char*>(from), bytes, reinterpret_cast<char*>(out));
  else
    __builtin_memcpy(out, from, size_t(bytes));
}

template <typename scalar_t>
void weighted_sum(const scalar_t* const* sources, const acc_type<scalar_t>* weights, int64_t sources_count,
                  int64_t count, scalar_t* out, bool stream) {
  if (sources_count == 0) {
    __builtin_memset(out, 0, size_t(count) * sizeof(scalar_t));
  } else if (sources_count == 1 && weights[0] == 1) {
    copy(sources[0], count, out, stream);
  } else if (sources_count == 2) {
    if (stream)
      sum_sources<2, true>(sources, weights, 2, count, out);
    else
      sum_sources<2, false>(sources, weights, 2, count, out);
  } else {
    if (stream)
      sum_sources<0, true>(sources, weights, sources_count, count, out);
    else
      sum_sources<0, false>(sources, weights, sources_count, count, out);
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
  constexpr int64_t step = kStep<out_t>;
  const Vec<acc_t> w_a = broadcast(w_own), w_b = broadcast(w_partner);
  const Vec<acc_t> one_scale = broadcast(table.scale[0]), one_shift = broadcast(table.shift[0]);
  int64_t phase = table.phase;
  const auto pixels = [&](const uint8_t* a, const uint8_t* b) ICM_LAMBDA_INLINE {
    Vec<acc_t> mix;
    if constexpr (kSources == Sources::kOwn) mix = load_pixels(a, acc_t());
    if constexpr (kSources == Sources::kPartner) mix = load_pixels(b, acc_t());
    if constexpr (kSources == Sources::kBoth)
      mix = mix_values(w_a, load_pixels(a, acc_t()), w_b, load_pixels(b, acc_t()), Fma());
    const Vec<acc_t> scale = kOneChannel ? one_scale : load(table.scale + phase);
    const Vec<acc_t> shift = kOneChannel ? one_shift : load(table.shift + phase);
    return fma(mix, scale, shift);
  };
  const auto advance = [&](int64_t elements) ICM_LAMBDA_INLINE {
    if constexpr (!kOneChannel) phase = (phase + elements) % table.period;
  };
  const int64_t stride = kOneChannel ? 0 : step % table.period;
  for_each_vector(
      out, count, kStream,
      [&](int64_t k) ICM_LAMBDA_INLINE {
        const Vec<acc_t> v = pixels(own + k, partner + k);
        if constexpr (kStream)
          stream_acc(out + k, v);
        else
          store_acc(out + k, v);
        if constexpr (!kOneChannel) {
          phase += stride;
          phase -= phase >= table.period ? table.period : 0;
        }
      },
      [&](int64_t k, int64_t valid) {
        uint8_t a[step] = {}, b[step] = {};
        out_t lanes[step];
        if constexpr (kSources != Sources::kPartner) copy_elements(a, own + k, valid);
        if constexpr (kSources != Sources::kOwn) copy_elements(b, partner + k, valid);
        store_acc(lanes, pixels(a, b));
        copy_elements(out + k, lanes, valid);
        advance(valid);
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
