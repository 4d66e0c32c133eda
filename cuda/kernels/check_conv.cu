// The exact convolution that plans are verified against, and what verification needs beside it.
//
// reference_conv computes [N,H,W,C; int8] * [K,R,S,C; int8] -> [N,P,Q,K; out] with int32 sums
// and the epilogue of the numerics contract, spelled out in correctly rounded operations. It is
// an implicit matrix product on dp4a: a block of 256 threads makes 64 pixels x 64 channels, in
// steps of 32 bytes of the reduction over (r, s, c); a thread makes 4 x 4 of them. C % 4 == 0.
// It aims at being evidently right, not at the roofline: no tensor cores, no asynchronous copies.

namespace jax_qconv {

constexpr int kTile = 64;   // pixels and channels of a block
constexpr int kStep = 8;    // reduction words (4 int8 each) of a step
constexpr int kLanes = 16;  // threads along pixels and along channels
constexpr int kPerThread = kTile / kLanes;

// The 4 input bytes that reduction word `word` of output pixel `pixel` multiplies; padding is 0.
__device__ int input_word(const ConvParams& t, const int* x, int pixel, int word) {
  const int words = t.c / 4, taps_words = t.r * t.s * words;
  if (pixel >= t.n * t.p * t.q || word >= taps_words) return 0;
  const int tap = word / words;
  const int q = pixel % t.q, p = pixel / t.q % t.p, n = pixel / t.q / t.p;
  const int h = p * t.stride_h - t.pad_top + tap / t.s * t.dilation_h;
  const int w = q * t.stride_w - t.pad_left + tap % t.s * t.dilation_w;
  if (h < 0 || h >= t.h || w < 0 || w >= t.w) return 0;
  return x[((static_cast<long long>(n) * t.h + h) * t.w + w) * words + word % words];
}

__device__ int weight_word(const ConvParams& t, const int* w, int channel, int word) {
  const int words = t.r * t.s * t.c / 4;
  if (channel >= t.k || word >= words) return 0;
  return w[static_cast<long long>(channel) * words + word];
}

__device__ float activate(const ConvParams& t, float y, const float* lower, const float* upper) {
  switch (t.activation) {
    case 1:  // relu
      return y < 0.0f ? 0.0f : y;
    case 2:  // clip
      return fminf(fmaxf(y, *lower), *upper);
    case 3:  // leaky relu
      return y > 0.0f ? y : __fmul_rn(y, t.slope);
    default:
      return y;
  }
}

__device__ void store(const ConvParams& t, void* out, long long at, float y) {
  switch (t.out) {
    case 0:  // int8: half to even, saturating
      static_cast<signed char*>(out)[at] = min(max(__float2int_rn(y), -128), 127);
      break;
    case 2:
      static_cast<float*>(out)[at] = y;
      break;
    case 3:
      asm("{ .reg .b16 h; cvt.rn.bf16.f32 h, %1; st.b16 [%0], h; }" ::"l"(
              static_cast<unsigned short*>(out) + at),
          "f"(y)
          : "memory");
      break;
    case 4:
      asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; st.b16 [%0], h; }" ::"l"(
              static_cast<unsigned short*>(out) + at),
          "f"(y)
          : "memory");
      break;
  }
}

extern "C" __global__ void __launch_bounds__(kLanes* kLanes)
    reference_conv(ConvParams t, const int* x, const int* w, const float* m, const float* b,
                   const signed char* r, const float* m_r, const float* lower, const float* upper,
                   void* out) {
  // One column more than needed: rows of 64 words would all start in the same bank.
  __shared__ int x_tile[kStep][kTile + 1], w_tile[kStep][kTile + 1];
  const int first_pixel = blockIdx.x * kTile, first_channel = blockIdx.y * kTile;
  const int pixel_lane = threadIdx.x / kLanes, channel_lane = threadIdx.x % kLanes;
  int acc[kPerThread][kPerThread] = {};

  for (int word = 0; word < t.r * t.s * t.c / 4; word += kStep) {
    for (int i = threadIdx.x; i < kStep * kTile; i += blockDim.x) {
      const int row = i / kStep, step = i % kStep;
      x_tile[step][row] = input_word(t, x, first_pixel + row, word + step);
      w_tile[step][row] = weight_word(t, w, first_channel + row, word + step);
    }
    __syncthreads();
    for (int step = 0; step < kStep; ++step) {
      for (int i = 0; i < kPerThread; ++i) {
        for (int j = 0; j < kPerThread; ++j) {
          acc[i][j] = __dp4a(x_tile[step][pixel_lane + i * kLanes],
                             w_tile[step][channel_lane + j * kLanes], acc[i][j]);
        }
      }
    }
    __syncthreads();
  }

  for (int i = 0; i < kPerThread; ++i) {
    for (int j = 0; j < kPerThread; ++j) {
      const int pixel = first_pixel + pixel_lane + i * kLanes;
      const int channel = first_channel + channel_lane + j * kLanes;
      if (pixel >= t.n * t.p * t.q || channel >= t.k) continue;
      const long long at = static_cast<long long>(pixel) * t.k + channel;
      if (t.out == 1) {  // int32: the bare accumulator
        static_cast<int*>(out)[at] = acc[i][j];
        continue;
      }
      float y = __fmaf_rn(__int2float_rn(acc[i][j]), m[channel], b[channel]);
      if (r != nullptr) y = __fmaf_rn(__int2float_rn(r[at]), *m_r, y);
      store(t, out, at, activate(t, y, lower, upper));
    }
  }
}

// Uniform int8 in [low, high]; odd rows of `row` elements are negated (row = 0: none is).
extern "C" __global__ void fill(signed char* out, long long count, unsigned seed, int low, int high,
                                long long row) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    // Mixing steps of MurmurHash3 (Austin Appleby, public domain).
    unsigned hash = static_cast<unsigned>(i) * 0x9e3779b9u ^ seed;
    hash = (hash ^ hash >> 16) * 0x85ebca6bu;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
    hash ^= hash >> 16;
    const int value = low + static_cast<int>(hash % static_cast<unsigned>(high - low + 1));
    out[i] = row != 0 && i / row % 2 == 1 ? -value : value;
  }
}

// Does nothing for a while.
extern "C" __global__ void spin(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

// Counts elements of `size` bytes that differ, and finds the first: result = {count, first}.
extern "C" __global__ void compare(const unsigned char* found, const unsigned char* expected,
                                   long long count, int size, unsigned long long* result) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    bool same = true;
    for (int byte = 0; byte < size; ++byte) {
      same &= found[i * size + byte] == expected[i * size + byte];
    }
    if (!same) {
      atomicAdd(&result[0], 1ull);
      atomicMin(&result[1], static_cast<unsigned long long>(i));
    }
  }
}

}  // namespace jax_qconv
