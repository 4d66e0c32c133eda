// What kernels use of CUDA, for a host compiler. Threads of a block run one after the other, or,
// where they wait for each other, as threads of the host; blocks always one after the other.

#pragma once

#include <math.h>

#include <algorithm>
#include <barrier>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

using std::max, std::min;

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Index {
  unsigned x, y, z;
};
inline thread_local Index blockIdx, threadIdx, blockDim, gridDim;

#define __shared__ static  // one block at a time
inline std::barrier<>* block_barrier = nullptr;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { __syncthreads(); }  // all warps do the same

// A product of the matrix units: every thread of a warp lays down its part and takes up its own.
inline void multiply(int (&d)[4], const int (&a)[4], const int (&b)[2]) {
  static int all_a[1024][4], all_b[1024][2];
  std::copy(a, a + 4, all_a[threadIdx.x]);
  std::copy(b, b + 2, all_b[threadIdx.x]);
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x - lane;
  const auto byte = [](int word, int at) { return static_cast<signed char>(word >> 8 * at); };
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
    for (int term = 0; term < 32; ++term) {
      const unsigned part = term % 16 / 4;
      const int left = all_a[warp + row % 8 * 4 + part][row / 8 + term / 16 * 2];
      d[i] += byte(left, term % 4) * byte(all_b[warp + col * 4 + part][term / 16], term % 4);
    }
  }
  __syncthreads();
}
// The pixels of a warpgroup's product: eight in a row, 16 bytes each, in planes of 16 terms.
struct Descriptor {
  const signed char* from;
  int plane_bytes;
};
inline Descriptor descriptor(const signed char* from, int plane_bytes) {
  return {from, plane_bytes};
}
// Each warp has 16 of the 64 rows, as in the product above, and all columns.
template <int kBlocks>
void multiply(int (&d)[kBlocks][4], const int (&a)[4], Descriptor b, bool accumulate) {
  static int all_a[1024][4];
  std::copy(a, a + 4, all_a[threadIdx.x]);
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x - lane;
  for (int i = 0; i < kBlocks * 4; ++i) {
    const unsigned row = lane / 4 + i % 4 / 2 * 8, col = i / 4 * 8 + lane % 4 * 2 + i % 2;
    int sum = accumulate ? d[i / 4][i % 4] : 0;
    for (int term = 0; term < 32; ++term) {
      const int left = all_a[warp + row % 8 * 4 + term % 16 / 4][row / 8 + term / 16 * 2];
      sum += static_cast<signed char>(left >> 8 * (term % 4)) *
             b.from[term / 16 * b.plane_bytes + col * 16 + term % 16];
    }
    d[i / 4][i % 4] = sum;
  }
  __syncthreads();
}
inline void begin_products() {}
inline void show_to_products() {}
template <int kBlocks>
void await_products(int (&)[kBlocks][4]) {}

template <int kBytes>
void copy_bytes(void* to, const void* from) {
  std::copy_n(static_cast<const char*>(from), kBytes, static_cast<char*>(to));
}
inline void copy_or_clear(void* to, const void* from, bool copy) {
  if (copy) copy_bytes<16>(to, from);
  else std::fill_n(static_cast<char*>(to), 16, 0);
}
inline void end_group() {}
template <int kLeft>
void await_groups() {}

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

template <typename T>
T __ldg(const T* from) {
  return *from;
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline int __float2int_rn(float a) {
  if (std::isnan(a)) return 0;
  if (a >= 0x1p31f) return INT_MAX;
  return a < -0x1p31f ? INT_MIN : static_cast<int>(std::nearbyint(a));
}
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<signed char>(a >> i) * static_cast<signed char>(b >> i);
  }
  return sum;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= (bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return word;
}

// Half to even, by the bits: `exponent` and `mantissa` bits of the narrower float.
inline unsigned short narrowed(float y, int exponent, int mantissa) {
  const unsigned short sign = std::signbit(y) ? 0x8000 : 0;
  const unsigned short infinity = ((1 << exponent) - 1) << mantissa;
  if (std::isnan(y)) return sign | infinity | 1 << (mantissa - 1);
  const int bias = (1 << (exponent - 1)) - 1;
  // Units of the last place, which below the normal numbers no longer shrink.
  const int place = std::max(y == 0 ? INT_MIN / 2 : std::ilogb(y), 1 - bias) - mantissa;
  const double units = std::nearbyint(std::ldexp(std::fabs(static_cast<double>(y)), -place));
  // The exponent field and the mantissa follow each other, so a carry does the right thing.
  const double bits = units + static_cast<double>(place + mantissa + bias - 1) * (1 << mantissa);
  return sign | (std::isinf(y) || bits >= infinity ? infinity : static_cast<unsigned short>(bits));
}
inline unsigned short to_bfloat16(float y) { return narrowed(y, 8, 7); }
inline unsigned short to_float16(float y) { return narrowed(y, 5, 10); }
inline int pack_int8(const float (&y)[4]) {
  unsigned word = 0;
  for (int i = 0; i < 4; ++i) {
    const int value = std::min(std::max(__float2int_rn(y[i]), -128), 127);
    word |= (static_cast<unsigned>(value) & 0xff) << 8 * i;
  }
  return word;
}

template <typename Kernel>
void run_thread(Kernel kernel, Index blocks, unsigned threads, Index block, unsigned thread) {
  gridDim = blocks, blockDim = {threads, 1, 1}, blockIdx = block, threadIdx = {thread, 0, 0};
  kernel();
}

template <typename Kernel>
void run_grid(Kernel kernel, unsigned columns, unsigned rows, unsigned threads, bool waiting) {
  for (unsigned block = 0; block < columns * rows; ++block) {
    const Index blocks = {columns, rows, 1}, at = {block % columns, block / columns, 0};
    if (!waiting) {
      for (unsigned i = 0; i < threads; ++i) run_thread(kernel, blocks, threads, at, i);
      continue;
    }
    std::barrier<> barrier(threads);
    block_barrier = &barrier;
    std::vector<std::jthread> crew;
    for (unsigned i = 0; i < threads; ++i) {
      crew.emplace_back([=] { run_thread(kernel, blocks, threads, at, i); });
    }
  }
}
