// Mixing on CUDA. Compiled for sm_80, sm_90 and sm_100, but NOT YET RUN ON A GPU: only backend="cuda" reaches it.
// Equations in ../mixup_math.h, checks and allocation in ../mixup_operators.h.
//
// Grid: sample fastest, chunk of the sample slowest, so that a partner's chunk is likely still in the second-level
// cache. Each thread takes packs of 16 bytes of the wider type where everything is aligned, else single elements.
// Values are read on the device only: a bad lam or index makes that sample NaN and is never used as an index.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/accelerator.h>

#include <type_traits>

#include "../mixup_operators.h"
#include "runtime.h"

namespace icm {
namespace {

constexpr int kThreads = 256;           // untuned
constexpr int64_t kMostChunks = 65535;  // the limit of gridDim.y
constexpr int kPackBytes = 16;

template <typename scalar_t>
using Acc = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ void from_acc(float x, float* out) { *out = x; }
__device__ __forceinline__ void from_acc(double x, double* out) { *out = x; }
__device__ __forceinline__ void from_acc(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void from_acc(float x, __half* out) { *out = __float2half_rn(x); }

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T v[kSize];
};

template <typename T, int kSize>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, kSize>*>(p);
}
template <typename T, int kSize>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(p) = pack;
}

template <typename T>
struct Samples {
  T* first;
  int64_t stride;
  __device__ __forceinline__ T* operator[](int64_t i) const { return first + i * stride; }
};

struct Fma {
  __device__ __forceinline__ float operator()(float a, float b, float c) const { return fmaf(a, b, c); }
  __device__ __forceinline__ double operator()(double a, double b, double c) const { return fma(a, b, c); }
};

// Scale and shift of each channel, (2, channels).
template <typename acc_t>
__global__ void pixel_table_kernel(FloatVector mean, FloatVector std, int64_t channels, acc_t* table) {
  for (int64_t c = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; c < channels;
       c += int64_t(gridDim.x) * blockDim.x) {
    table[c] = acc_t(pixel_scale(std.at<double>(c)));
    table[channels + c] = acc_t(pixel_shift(mean.at<double>(c), std.at<double>(c)));
  }
}

// One element of the result. A source of weight 0 takes no part; alone, a sample of floats is copied.
template <typename in_t, typename out_t>
__device__ __forceinline__ out_t mixed_element(MixWeights<Acc<out_t>> w, in_t own, in_t partner,
                                               const SampleLayout& layout, const Acc<out_t>* table,
                                               uint32_t e) {
  using acc_t = Acc<out_t>;
  const Fma multiply_add;
  if constexpr (std::is_same_v<in_t, uint8_t>) {
    const uint32_t c = e / uint32_t(layout.channel_stride) % uint32_t(layout.channels);
    const acc_t a = acc_t(own), b = acc_t(partner);
    const acc_t mix = w.partner == 0 ? a : w.own == 0 ? b : mix_values(w.own, a, w.partner, b, multiply_add);
    out_t result;
    from_acc(multiply_add(mix, table[c], table[layout.channels + c]), &result);
    return result;
  } else {
    if (w.partner == 0) return own;
    if (w.own == 0) return partner;
    out_t result;
    from_acc(mix_values(w.own, to_acc(own), w.partner, to_acc(partner), multiply_add), &result);
    return result;
  }
}

template <typename in_t, typename out_t, int kSize>
__global__ void __launch_bounds__(kThreads)
    mixup_fwd_kernel(Samples<const in_t> x, Samples<out_t> out, Partners partners, SampleLayout layout,
                     bool keep_clean, const Acc<out_t>* table) {
  using acc_t = Acc<out_t>;
  const int64_t i = blockIdx.x, partner = partners.of(i);
  const MixWeights<acc_t> weights = mix_weights(partners.lam.at<acc_t>(i), i, partner, partners.batch);
  const bool bad = is_bad(weights), alone = bad || partner == i;
  const Box box = alone ? Box{0, 0, 0, 0} : partners.box_of(i, layout);
  const bool has_box = box.y2 > 0;
  const in_t *own_row = x[i], *partner_row = x[alone ? i : partner];
  out_t *clean_out = out[i], *mixed_out = out[keep_clean ? partners.batch + i : i];

  const uint32_t step = gridDim.y * kThreads * kSize, size = uint32_t(layout.size);
  for (uint32_t e = (blockIdx.y * kThreads + threadIdx.x) * kSize; e < size; e += step) {
    const Pack<in_t, kSize> own = load_pack<in_t, kSize>(own_row + e);
    const Pack<in_t, kSize> other = load_pack<in_t, kSize>(partner_row + e);
    Pack<out_t, kSize> clean, mixed;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const bool boxed = has_box && inside(box, layout, e + k);
      const MixWeights<acc_t> w = boxed ? MixWeights<acc_t>{0, 1} : weights;
      mixed.v[k] = mixed_element<in_t, out_t>(w, own.v[k], other.v[k], layout, table, e + k);
      if (bad) from_acc(weights.own, &mixed.v[k]);
      if (keep_clean)
        clean.v[k] =
            mixed_element<in_t, out_t>({acc_t(1), acc_t(0)}, own.v[k], own.v[k], layout, table, e + k);
    }
    store_pack<out_t, kSize>(mixed_out + e, mixed);
    if (keep_clean) store_pack<out_t, kSize>(clean_out + e, clean);
  }
}

// O(B) per thread; B is some thousands at most, and the lists ascend without a sort.
__global__ void partner_lists_kernel(Partners partners, int64_t* first, int64_t* next) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, batch = partners.batch;
  if (i >= batch) return;
  const int64_t mine = partners.of(i);
  int64_t head = -1, follower = -1;
  for (int64_t k = batch - 1; k >= 0; --k) {
    const int64_t partner = partners.of(k);
    if (partner == k) continue;
    if (partner == i) head = k;
    if (partner == mine && k > i) follower = k;
  }
  first[i] = head;
  next[i] = follower;
}

// Adds w * g to the sum of a pack; the first term is the product alone.
template <typename scalar_t, int kSize>
struct PackSum {
  using acc_t = Acc<scalar_t>;
  acc_t sum[kSize] = {};

  __device__ __forceinline__ void add(const scalar_t* grad, uint32_t e, MixWeights<acc_t> weights,
                                      bool is_own, const Box& box, const SampleLayout& layout) {
    const Pack<scalar_t, kSize> g = load_pack<scalar_t, kSize>(grad + e);
    const bool has_box = box.y2 > 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const bool boxed = has_box && inside(box, layout, e + k);
      const acc_t w = is_own ? (boxed ? acc_t(0) : weights.own) : (boxed ? acc_t(1) : weights.partner);
      if (w != 0) sum[k] = Fma()(w, to_acc(g.v[k]), sum[k]);
    }
  }
};

template <typename scalar_t, int kSize>
__global__ void __launch_bounds__(kThreads)
    mixup_bwd_kernel(Samples<const scalar_t> clean, Samples<const scalar_t> mixed, Samples<scalar_t> dx,
                     Partners partners, SampleLayout layout, bool keep_clean, PartnerLists lists) {
  using acc_t = Acc<scalar_t>;
  const int64_t i = blockIdx.x, batch = partners.batch, partner = partners.of(i);
  const auto weights_of = [&](int64_t k) {
    return mix_weights(partners.lam.at<acc_t>(k), k, partners.of(k), batch);
  };
  const MixWeights<acc_t> weights = weights_of(i);
  const Box none{0, 0, 0, 0};
  const Box box = is_bad(weights) || partner == i ? none : partners.box_of(i, layout);

  const uint32_t step = gridDim.y * kThreads * kSize, size = uint32_t(layout.size);
  for (uint32_t e = (blockIdx.y * kThreads + threadIdx.x) * kSize; e < size; e += step) {
    PackSum<scalar_t, kSize> total;
    if (keep_clean) total.add(clean[i], e, {acc_t(1), acc_t(0)}, true, none, layout);
    total.add(mixed[i], e, weights, true, box, layout);
    for (int64_t k = lists.first[i]; k >= 0; k = lists.next[k]) {
      const MixWeights<acc_t> w = weights_of(k);
      total.add(mixed[k], e, w, false, is_bad(w) ? none : partners.box_of(k, layout), layout);
    }
    Pack<scalar_t, kSize> result;
#pragma unroll
    for (int k = 0; k < kSize; ++k) from_acc(total.sum[k], &result.v[k]);
    store_pack<scalar_t, kSize>(dx[i] + e, result);
  }
}

// Elements of a sample are counted in 32 bits: 64-bit divisions would be most of the kernels' instructions. A count
// passes the size by at most one step, which is below 2^29.
void check_size(const char* op, const Mixing& m) {
  STD_TORCH_CHECK(m.layout.size < (int64_t(1) << 31), op,
                  ": expected samples of less than 2^31 elements on CUDA");
}

template <typename T>
Samples<T> samples(const Tensor& x) {
  return {static_cast<T*>(x.data_ptr()), x.stride(0)};
}

// Whether packs of `size` elements are aligned in every sample.
bool is_aligned(const Tensor& x, int64_t samples_size, int64_t size) {
  const int64_t bytes = size * int64_t(x.element_size());
  return reinterpret_cast<uintptr_t>(x.data_ptr()) % uintptr_t(bytes) == 0 && samples_size % size == 0 &&
         x.stride(0) % size == 0;
}

dim3 grid_for(int64_t batch, int64_t size, int pack) {
  const int64_t chunks = (size + int64_t(kThreads) * pack - 1) / (int64_t(kThreads) * pack);
  return dim3(unsigned(batch), unsigned(std::min(chunks, kMostChunks)));
}

template <typename in_t, typename out_t>
void mix_cuda(const char* op, const Mixing& m, cudaStream_t stream) {
  constexpr int size = kPackBytes / int(std::max(sizeof(in_t), sizeof(out_t)));
  using acc_t = Acc<out_t>;
  Tensor table;
  acc_t* table_data = nullptr;
  if constexpr (std::is_same_v<in_t, uint8_t>) {
    const Shape sizes{2, m.layout.channels}, strides{m.layout.channels, 1};
    const ScalarType type = std::is_same_v<acc_t, double> ? ScalarType::Double : ScalarType::Float;
    table = new_strided(sizes, strides, type, aoti_torch_device_type_cuda(), m.x.get_device_index());
    table_data = static_cast<acc_t*>(table.data_ptr());
    pixel_table_kernel<<<1, kThreads, 0, stream>>>(m.mean, m.std, m.layout.channels, table_data);
    check_launch(op);
  }
  const int64_t batch = m.partners.batch;
  const bool packs = is_aligned(m.x, m.layout.size, size) && is_aligned(m.out, m.layout.size, size);
  const auto kernel = packs ? mixup_fwd_kernel<in_t, out_t, size> : mixup_fwd_kernel<in_t, out_t, 1>;
  kernel<<<grid_for(batch, m.layout.size, packs ? size : 1), kThreads, 0, stream>>>(
      samples<const in_t>(m.x), samples<out_t>(m.out), m.partners, m.layout, m.keep_clean, table_data);
  check_launch(op);
}

template <typename scalar_t>
void unmix_cuda(const char* op, const Mixing& m, cudaStream_t stream) {
  constexpr int size = kPackBytes / int(sizeof(scalar_t));
  const int64_t batch = m.partners.batch;
  const Shape sizes{2, batch}, strides{batch, 1};
  const Tensor lists =
      new_strided(sizes, strides, ScalarType::Long, aoti_torch_device_type_cuda(), m.x.get_device_index());
  int64_t* first = static_cast<int64_t*>(lists.data_ptr());
  partner_lists_kernel<<<unsigned((batch + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      m.partners, first, first + batch);
  check_launch(op);
  const auto clean = samples<const scalar_t>(m.x);
  const Samples<const scalar_t> mixed{clean.first + (m.keep_clean ? batch * clean.stride : 0), clean.stride};
  const bool packs = is_aligned(m.x, m.layout.size, size) && is_aligned(m.out, m.layout.size, size);
  const auto kernel = packs ? mixup_bwd_kernel<scalar_t, size> : mixup_bwd_kernel<scalar_t, 1>;
  kernel<<<grid_for(batch, m.layout.size, packs ? size : 1), kThreads, 0, stream>>>(
      clean, mixed, samples<scalar_t>(m.out), m.partners, m.layout, m.keep_clean, {first, first + batch});
  check_launch(op);
}

struct Cuda {
  static bool owns(const Tensor& tensor) { return tensor.is_cuda(); }
  static Tensor empty(const Shape& sizes, const Shape& strides, ScalarType type, const Tensor& like) {
    return new_strided(sizes, strides, type, aoti_torch_device_type_cuda(), like.get_device_index());
  }
  static void mix(const char* op, const Mixing& m) {
    check_size(op, m);
    const torch::stable::accelerator::DeviceGuard guard(m.x.get_device_index());
    const cudaStream_t stream = current_stream(m.x.get_device_index());
    dispatch_floating_types<__nv_bfloat16, __half>(op, m.out, [&](auto zero) {
      using out_t = decltype(zero);
      if (m.x.scalar_type() == ScalarType::Byte)
        mix_cuda<uint8_t, out_t>(op, m, stream);
      else
        mix_cuda<out_t, out_t>(op, m, stream);
    });
  }
  static void unmix(const char* op, const Mixing& m) {
    check_size(op, m);
    const torch::stable::accelerator::DeviceGuard guard(m.x.get_device_index());
    const cudaStream_t stream = current_stream(m.x.get_device_index());
    dispatch_floating_types<__nv_bfloat16, __half>(
        op, m.out, [&](auto zero) { unmix_cuda<decltype(zero)>(op, m, stream); });
  }
};

}  // namespace
}  // namespace icm

STABLE_TORCH_LIBRARY_IMPL(icm_fast, CUDA, m) {
  m.impl("mixup_fwd.cuda", TORCH_BOX(&icm::mixup_fwd<icm::Cuda>));
  m.impl("mixup_out.cuda", TORCH_BOX(&icm::mixup_out<icm::Cuda>));
  m.impl("mixup_bwd.cuda", TORCH_BOX(&icm::mixup_bwd<icm::Cuda>));
}
