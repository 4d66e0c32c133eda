// What kernels on the matrix units share: bytes on their way through shared memory, and outputs
// made of sums there.

namespace jax_qconv {

// Constants that the host writes before this source: kParams, the convolution; kCols, the channels
// of a block; kThreads and kSharedBytes of a block.
constexpr int kStep = 32;                // terms of a product
constexpr int kColsStride = kCols + 16;  // bytes between rows of outputs in shared memory

// Bytes that rows of so many are copied by at a time: where each row starts, they are aligned.
__device__ constexpr int chunk_of(int bytes) {
  return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
}

#ifdef __CUDA_ARCH__
extern __shared__ int4 shared_words[];

__device__ unsigned shared_address(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}
// Bytes into shared memory, without waiting for them; 16 at a time pass by the L1 cache.
template <int kBytes>
__device__ void copy_bytes(void* to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from),
                 "n"(kBytes)
                 : "memory");
  }
}
// 16 of them, or zeros.
__device__ void copy_or_clear(void* to, const void* from, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(copy ? 16 : 0)
               : "memory");
}
__device__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all groups but the last `kLeft` are there.
template <int kLeft>
__device__ void await_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#else
__shared__ int4 shared_words[kSharedBytes / 16];
#endif

__device__ signed char* shared_bytes() { return reinterpret_cast<signed char*>(shared_words); }

struct Scalars {
  float m_r, z_r, lower, upper, m_y, b_y;
};

__device__ Scalars load_scalars(const Operands& o) {
  Scalars to = {};
  if (kParams.residual) to.m_r = scalar(o.m_r);
  if (kParams.residual_zero_point) to.z_r = scalar(o.z_r);
  if (kParams.activation == kClip) to.lower = scalar(o.lower), to.upper = scalar(o.upper);
  if (kParams.requantize) to.m_y = scalar(o.m_y), to.b_y = scalar(o.b_y);
  return to;
}

// Constants of two channels.
struct Pair {
  float m[2], b[2], slopes[2];
};

// Outputs of two channels at two pixels, in the places of their residuals. `sums`: one pixel's,
// then the other's.
__device__ void finish_pairs(const Scalars& own, const Pair& pair, const int (&sums)[4],
                             signed char* one, signed char* other) {
  signed char r[4] = {};
  if (kParams.residual) {
    const short steps[] = {*reinterpret_cast<short*>(one), *reinterpret_cast<short*>(other)};
    for (int i = 0; i < 4; ++i) r[i] = static_cast<signed char>(steps[i / 2] >> 8 * (i % 2));
  }
  // The epilogue of all kernels, reading registers.
  Operands near;
  near.m = pair.m, near.b = pair.b, near.slopes = pair.slopes, near.r = r;
  near.m_r = &own.m_r, near.z_r = &own.z_r, near.lower = &own.lower, near.upper = &own.upper;
  near.m_y = &own.m_y, near.b_y = &own.b_y;
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = epilogue<float>(kParams, near, sums[i], i % 2, i);
  const int word = pack_int8(y);
  *reinterpret_cast<short*>(one) = static_cast<short>(word);
  *reinterpret_cast<short*>(other) = static_cast<short>(word >> 16);
}

// Outputs of a block's channels from shared memory: one pixel's chunk of bytes.
template <int kChunk>
__device__ void store_chunk(signed char* to, const signed char* from) {
  if constexpr (kChunk == 16) {
    *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(from);
  } else {
    *reinterpret_cast<int2*>(to) = *reinterpret_cast<const int2*>(from);
  }
}

}  // namespace jax_qconv
