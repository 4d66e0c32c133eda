// Products of a warp: 32 pixels by kWarpCols channels, by m16n8k32 instructions, with weights and
// pixels from shared memory.

namespace jax_qconv {

// A constant that the host writes before this source, beside those of staging.h: kWarpCols, the
// channels of a warp.
constexpr int kWarpRows = 32;
constexpr int kDown = kWarpRows / 16, kAcross = kWarpCols / 8;  // products of a warp's tile

#ifdef __CUDA_ARCH__
// d += a * b for 16 x 32 and 32 x 8 bytes; each thread has a part of each.
__device__ void multiply(int (&d)[4], const int (&a)[4], const int (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

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

// Outputs in the places of their residuals. `channels` are those of
// `load_channels`, of which `channel` is the thread's first.
__device__ void finish_tile(const Scalars& own, const int (&sums)[kDown][kAcross][4],
                            const signed char* channels, signed char* places, int channel) {
  const float* const constants = reinterpret_cast<const float*>(channels);
#pragma unroll
  for (int across = 0; across < kAcross; ++across) {
    const int at = channel + across * 8;
    Pair pair = {};
    for (int i = 0; i < 2; ++i) {
      pair.m[i] = constants[kCols + at + i], pair.b[i] = constants[2 * kCols + at + i];
      if (kParams.activation == kPrelu) pair.slopes[i] = constants[3 * kCols + at + i];
    }
#pragma unroll
    for (int down = 0; down < kDown; ++down) {
      signed char* const upper = places + down * 16 * kColsStride + across * 8;
      finish_pairs(own, pair, sums[down][across], upper, upper + 8 * kColsStride);
    }
  }
}

}  // namespace jax_qconv
