// What kernels on the matrix units share: products of bytes in shared memory, and what follows
// them. A warp computes 32 pixels by kWarpCols channels with m16n8k32 products.

namespace jax_qconv {

// Constants that the host writes before this source: kParams, the convolution; kCols, the channels
// of a block; kWarpCols of a warp; kThreads and kSharedBytes of a block.
constexpr int kStep = 32;  // terms of a product
constexpr int kWarpRows = 32;
constexpr int kDown = kWarpRows / 16, kAcross = kWarpCols / 8;  // products of a warp's tile
constexpr int kColsStride = kCols + 16;  // bytes between rows of outputs in shared memory

// Bytes that rows of so many are copied by at a time: where each row starts, they are aligned.
__device__ constexpr int chunk_of(int bytes) {
  return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
}

#ifdef __CUDA_ARCH__
extern __shared__ int4 shared_words[];

// d += a * b for 16 x 32 and 32 x 8 bytes; each thread has a part of each.
__device__ void multiply(int (&d)[4], const int (&a)[4], const int (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Bytes into shared memory, without waiting for them; 16 at a time pass by the L1 cache.
template <int kBytes>
__device__ void copy_bytes(void* to, const void* from) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(kBytes)
                 : "memory");
  }
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

// Per-channel constants of a block in shared memory: z, m, b, slopes.
__device__ void load_channels(const Operands& o, int channel, signed char* to) {
  int* const words = reinterpret_cast<int*>(to);
  for (int i = threadIdx.x; i < kCols; i += kThreads) {
    if (kParams.offset == kPerChannel) words[i] = static_cast<const int*>(o.z)[channel + i];
    words[kCols + i] = static_cast<const int*>(o.m)[channel + i];
    words[2 * kCols + i] = static_cast<const int*>(o.b)[channel + i];
    if (kParams.activation == kPrelu) {
      words[3 * kCols + i] = static_cast<const int*>(o.slopes)[channel + i];
    }
  }
}

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

// Outputs in the places of their residuals. `channels` are those of
// `load_channels`, of which `channel` is the thread's first.
__device__ void finish_tile(const Scalars& own, const int (&sums)[kDown][kAcross][4],
                            const signed char* channels, signed char* places, int channel) {
  const float* const constants = reinterpret_cast<const float*>(channels);
#pragma unroll
  for (int across = 0; across < kAcross; ++across) {
    const int at = channel + across * 8;
    float m[2], b[2], slopes[2] = {};
    for (int i = 0; i < 2; ++i) {
      m[i] = constants[kCols + at + i], b[i] = constants[2 * kCols + at + i];
      if (kParams.activation == kPrelu) slopes[i] = constants[3 * kCols + at + i];
    }
#pragma unroll
    for (int down = 0; down < kDown; ++down) {
      signed char* const upper = places + down * 16 * kColsStride + across * 8;
      signed char* const lower = upper + 8 * kColsStride;
      signed char r[4] = {};
      if (kParams.residual) {
        const short pairs[] = {*reinterpret_cast<short*>(upper), *reinterpret_cast<short*>(lower)};
        for (int i = 0; i < 4; ++i) r[i] = static_cast<signed char>(pairs[i / 2] >> 8 * (i % 2));
      }
      // The epilogue of all kernels, reading registers.
      Operands near;
      near.m = m, near.b = b, near.slopes = slopes, near.r = r;
      near.m_r = &own.m_r, near.z_r = &own.z_r, near.lower = &own.lower, near.upper = &own.upper;
      near.m_y = &own.m_y, near.b_y = &own.b_y;
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[i] = epilogue<float>(kParams, near, sums[down][across][i], i % 2, i);
      }
      const int word = pack_int8(y);
      *reinterpret_cast<short*>(upper) = static_cast<short>(word);
      *reinterpret_cast<short*>(lower) = static_cast<short>(word >> 16);
    }
  }
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
