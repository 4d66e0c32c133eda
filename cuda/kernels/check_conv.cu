// The exact convolution that plans are verified against, and what verification needs beside it.
//
// reference_conv computes [N,D,H,W,C; int8] * [K,T,R,S,C; int8] -> [N,O,P,Q,K; out] with int32
// sums and the epilogue of the numerics contract. It is an implicit matrix product on dp4a: a block
// of 256 threads makes 64 pixels x 64 channels, in steps of 32 bytes of the reduction over kernel
// and channels; a thread makes 4 x 4 of them. C % 4 == 0. reference_grouped does the same for
// groups, one output a thread. They aim at being evidently right, not at the roofline: no tensor
// cores, no asynchronous copies.

namespace jax_qconv {

constexpr int kTile = 64;   // pixels and channels of a block
constexpr int kStep = 8;    // reduction words (4 int8 each) of a step
constexpr int kLanes = 16;  // threads along pixels and along channels
constexpr int kPerThread = kTile / kLanes;

__device__ int pixels(const ConvParams& t) {
  return t.n * t.out_size[0] * t.out_size[1] * t.out_size[2];
}
__device__ int taps(const ConvParams& t) { return t.kernel[0] * t.kernel[1] * t.kernel[2]; }

// Index of the input pixel that kernel element `tap` of output pixel `pixel` sees; -1 outside.
__device__ long long seen_pixel(const ConvParams& t, int pixel, int tap) {
  long long place = 0, stride = 1;
  for (int axis = 2; axis >= 0; --axis) {
    const int at = pixel % t.out_size[axis] * t.stride[axis] - t.pad[axis] +
                   tap % t.kernel[axis] * t.dilation[axis];
    if (at < 0 || at >= t.size[axis]) return -1;
    place += at * stride;
    stride *= t.size[axis];
    pixel /= t.out_size[axis];
    tap /= t.kernel[axis];
  }
  return place + pixel * stride;  // what is left of `pixel` is the image
}

// The 4 input bytes that reduction word `word` of output pixel `pixel` multiplies; padding is 0.
__device__ int input_word(const ConvParams& t, const int* x, int pixel, int word) {
  const int words = t.c / 4;
  if (pixel >= pixels(t) || word >= taps(t) * words) return 0;
  const long long seen = seen_pixel(t, pixel, word / words);
  return seen < 0 ? 0 : x[seen * words + word % words];
}

__device__ int weight_word(const ConvParams& t, const int* w, int channel, int word) {
  const int words = taps(t) * t.c / 4;
  if (channel >= t.k || word >= words) return 0;
  return w[static_cast<long long>(channel) * words + word];
}

extern "C" __global__ void __launch_bounds__(kLanes* kLanes)
    reference_conv(ConvParams t, Operands o) {
  // One column more than needed: rows of 64 words would all start in the same bank.
  __shared__ int x_tile[kStep][kTile + 1], w_tile[kStep][kTile + 1];
  const int* x = static_cast<const int*>(o.x);
  const int* w = static_cast<const int*>(o.w);
  const int first_pixel = blockIdx.x * kTile, first_channel = blockIdx.y * kTile;
  const int pixel_lane = threadIdx.x / kLanes, channel_lane = threadIdx.x % kLanes;
  int acc[kPerThread][kPerThread] = {};

  for (int word = 0; word < taps(t) * t.c / 4; word += kStep) {
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
      if (pixel >= pixels(t) || channel >= t.k) continue;
      finish<double>(t, o, acc[i][j], channel, static_cast<long long>(pixel) * t.k + channel);
    }
  }
}

extern "C" __global__ void reference_grouped(ConvParams t, Operands o) {
  const signed char* x = static_cast<const signed char*>(o.x);
  const signed char* w = static_cast<const signed char*>(o.w);
  const long long count = static_cast<long long>(pixels(t)) * t.k;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  const int channels = t.c / t.groups, outputs = t.k / t.groups;  // of a group
  for (long long at = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; at < count;
       at += stride) {
    const int channel = at % t.k;
    const signed char* row = w + static_cast<long long>(channel) * taps(t) * channels;
    int acc = 0;
    for (int tap = 0; tap < taps(t); ++tap) {
      const long long seen = seen_pixel(t, at / t.k, tap);
      if (seen < 0) continue;
      const signed char* from = x + seen * t.c + channel / outputs * channels;
      for (int c = 0; c < channels; ++c) acc += from[c] * row[tap * channels + c];
    }
    finish<double>(t, o, acc, channel, at);
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

__device__ float as_float(const void* values, int type, long long at) {
  float value;
  switch (type) {
    case kInt8:
      return static_cast<const signed char*>(values)[at];
    case kFloat32:
      return element(values, at);
    case kBfloat16:
      return __uint_as_float(static_cast<const unsigned short*>(values)[at] << 16);
    default:
      asm("cvt.f32.f16 %0, %1;"
          : "=f"(value)
          : "h"(static_cast<const unsigned short*>(values)[at]));
      return value;
  }
}

// Counts elements that differ, and finds the first: result = {count, first}. Outputs of functions
// that engines compute in their own ways may differ: int8 by `steps`, floats by a hundredth.
extern "C" __global__ void compare(const unsigned char* found, const unsigned char* expected,
                                   long long count, int type, int steps,
                                   unsigned long long* result) {
  const int size = type == kInt8 ? 1 : type == kInt32 || type == kFloat32 ? 4 : 2;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    bool same = true;
    for (int byte = 0; byte < size; ++byte) {
      same &= found[i * size + byte] == expected[i * size + byte];
    }
    if (!same && steps > 0) {
      const float wanted = as_float(expected, type, i), off = as_float(found, type, i) - wanted;
      same = fabsf(off) <= (type == kInt8 ? steps : 0.01f * fabsf(wanted) + 0.002f);
    }
    if (!same) {
      atomicAdd(&result[0], 1ull);
      atomicMin(&result[1], static_cast<unsigned long long>(i));
    }
  }
}

}  // namespace jax_qconv
