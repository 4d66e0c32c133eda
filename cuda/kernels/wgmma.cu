// Convolution of int8 to int8 by the warpgroup products of sm_90: of 1x1 kernels with any stride,
// and of larger ones with stride 1, whose weights fit into registers.
//
// A product of a warpgroup is 64 channels by kProduct pixels by 32 terms. Weights are its left
// side and stay in registers; so shared memory is read for pixels alone, half of what its width
// allows, and each thread has two channels, whose constants are registers too. (Pixels on the left
// would be read twice as often, and take a constant from shared memory for every second output.)
//
// A block has kCols output channels, 64 of each warpgroup, and walks down kRun tiles of kRows
// positions. While it works on one, the next is on its way into the other half of its buffers.
// Outputs take the places of the residuals that they were made from, and leave from there in rows
// of whole sectors. Two blocks or more share an SM: one multiplies while another finishes outputs.
//
// Positions are those of a grid in which the pixels of all images lie one after the other, each row
// and each image followed by the zeros of its padding. There a kernel's tap is a shift: the output
// at a position sums the inputs at that position plus the shift of each tap. So a tile's inputs are
// one window, copied once for all taps. Outputs of positions between the images aren't stored.
//
// The window is kept in planes of 16 channels, 16 bytes a position: eight positions, wherever they
// start, are the 128 bytes in a row that a product reads as one.

namespace jax_qconv {

// Constants that the host writes before this source, beside those of staging.h: kGridRows and
// kGridCols, the positions of an image; kRows, the positions of a tile, and kWindow, those that it
// reads; kProduct, those of a product; kRun, the tiles of a block; kBlocks, how many share an SM.
constexpr int kTaps = kParams.kernel[1] * kParams.kernel[2];
constexpr int kTapSteps = (kParams.c + kStep - 1) / kStep, kSteps = kTaps * kTapSteps;
constexpr int kPlanes = kParams.c / 16;
// Planes start in banks of their own.
constexpr int kPlaneBytes = kWindow * 16 + (kPlanes >= 8   ? 16
                                            : kPlanes >= 4 ? 32
                                            : kPlanes >= 2 ? 64
                                                           : 0);
constexpr int kWindowBytes = kPlanes * kPlaneBytes;
constexpr int kPlaces = 2 * kWindowBytes;
static_assert(kPlaces + 2 * kRows * kColsStride == kSharedBytes, "the host computes the same");

// Whether positions are pixels of the input.
constexpr bool kLinear = kGridRows == kParams.size[1] && kGridCols == kParams.size[2] &&
                         kParams.pad[1] == 0 && kParams.pad[2] == 0 && kParams.stride[1] == 1 &&
                         kParams.stride[2] == 1;
constexpr int kPixels = kParams.n * kParams.out_size[1] * kParams.out_size[2];
constexpr int kPositions = kParams.n * kGridRows * kGridCols;

// Where the input at a position is, or -1 for a zero.
__device__ int input_pixel(int position) {
  if constexpr (kLinear) return position < kPositions ? position : -1;
  const int row = position / kGridCols;
  const int h = row % kGridRows * kParams.stride[1] - kParams.pad[1];
  const int w = position % kGridCols * kParams.stride[2] - kParams.pad[2];
  if (position >= kPositions || h < 0 || h >= kParams.size[1] || w < 0 || w >= kParams.size[2]) {
    return -1;
  }
  return (row / kGridRows * kParams.size[1] + h) * kParams.size[2] + w;
}

// Where the output of a position is, or -1 for none.
__device__ int output_pixel(int position) {
  if constexpr (kPositions == kPixels) return position < kPixels ? position : -1;
  const int row = position / kGridCols, p = row % kGridRows, q = position % kGridCols;
  if (position >= kPositions || p >= kParams.out_size[1] || q >= kParams.out_size[2]) return -1;
  return (row / kGridRows * kParams.out_size[1] + p) * kParams.out_size[2] + q;
}

#ifdef __CUDA_ARCH__
// How the pixels of a product lie in shared memory, as its instruction is told: planes this far
// apart, eight positions in a row.
__device__ unsigned long long descriptor(const signed char* from, int plane_bytes) {
  const unsigned place = shared_address(from) >> 4;
  return 128ull >> 4 << 32 | static_cast<unsigned long long>(plane_bytes >> 4) << 16 | place;
}
// Before the first product: its registers were written.
__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What threads wrote to shared memory is there for products, after a barrier.
__device__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

__device__ void copy_tile(const Operands& o, int tile, int channel) {
  signed char* const window = shared_bytes() + tile % 2 * kWindowBytes;
  for (int i = threadIdx.x; i < kWindow * kPlanes; i += kThreads) {
    const int at = i / kPlanes, plane = i % kPlanes, pixel = input_pixel(tile * kRows + at);
    const long long from = static_cast<long long>(pixel < 0 ? 0 : pixel) * kParams.c + plane * 16;
    copy_or_clear(window + plane * kPlaneBytes + at * 16,
                  static_cast<const signed char*>(o.x) + from, pixel >= 0);
  }
  if (!kParams.residual) return;
  signed char* const places = shared_bytes() + kPlaces + tile % 2 * kRows * kColsStride;
  for (int i = threadIdx.x; i < kRows * (kCols / 16); i += kThreads) {
    const int row = i / (kCols / 16), at = i % (kCols / 16) * 16;
    const int pixel = output_pixel(tile * kRows + row);
    if (pixel < 0 || channel + at >= kParams.k) continue;
    copy_bytes<16>(places + row * kColsStride + at, static_cast<const signed char*>(o.r) +
                                                        static_cast<long long>(pixel) * kParams.k +
                                                        channel + at);
  }
}

__device__ void store_tile(const Operands& o, int tile, int channel) {
  const signed char* const places = shared_bytes() + kPlaces + tile % 2 * kRows * kColsStride;
  for (int i = threadIdx.x; i < kRows * (kCols / 16); i += kThreads) {
    const int row = i / (kCols / 16), at = i % (kCols / 16) * 16;
    const int pixel = output_pixel(tile * kRows + row);
    if (pixel < 0 || channel + at >= kParams.k) continue;
    store_chunk<16>(
        static_cast<signed char*>(o.out) + static_cast<long long>(pixel) * kParams.k + channel + at,
        places + row * kColsStride + at);
  }
}

// The thread's part of the weights of its two channels, as the left sides of all products: terms
// 4 j to 4 j + 3 and, 16 terms on, the same again, j being its place among four threads.
__device__ void load_weights(const Operands& o, int channel, int (&weights)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) {
    const int step = i / 4, own = channel + i % 2;
    const int c = step % kTapSteps * kStep + i % 4 / 2 * 16;
    const int term = step / kTapSteps * kParams.c + c + threadIdx.x % 4 * 4;
    // Terms beyond the last channels, and channels beyond those there are.
    weights[step][i % 4] =
        c >= kParams.c || own >= kParams.k
            ? 0
            : *reinterpret_cast<const int*>(static_cast<const signed char*>(o.w) +
                                            static_cast<long long>(own) * kTaps * kParams.c + term);
  }
}

// Sums of the thread's two channels at kProduct positions: two of every eight.
__device__ void sum_up(int (&sums)[kProduct / 8][4], const int (&weights)[kSteps][4],
                       const signed char* window) {
  begin_products();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int tap = step / kTapSteps, plane = step % kTapSteps * 2;
    const int shift = tap / kParams.kernel[2] * kParams.dilation[1] * kGridCols +
                      tap % kParams.kernel[2] * kParams.dilation[2];
    // A last plane without a second half is read twice, for weights of zero.
    const int next = plane + 1 < kPlanes ? kPlaneBytes : 0;
    multiply(sums, weights[step], descriptor(window + plane * kPlaneBytes + shift * 16, next),
             step > 0 || kParams.offset == kPerChannel);
  }
  await_products(sums);
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) wgmma(Operands o) {
  constexpr int kTiles = (kPositions + kRows - 1) / kRows;
  constexpr int kParts = (kParams.k + kCols - 1) / kCols;
  const int channel = blockIdx.x % kParts * kCols;
  const int first = static_cast<int>(blockIdx.x / kParts) * kRun;
  const int end = min(first + kRun, kTiles);
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16 + lane / 4 * 2;

  copy_tile(o, first, channel);
  end_group();
  int weights[kSteps][4];
  load_weights(o, channel + own, weights);
  const Scalars scalars = load_scalars(o);
  Pair pair = {};
  int z[2] = {};
  for (int i = 0; i < 2; ++i) {
    if (channel + own >= kParams.k) continue;
    pair.m[i] = element(o.m, channel + own + i), pair.b[i] = element(o.b, channel + own + i);
    if (kParams.activation == kPrelu) pair.slopes[i] = element(o.slopes, channel + own + i);
    if (kParams.offset == kPerChannel) z[i] = static_cast<const int*>(o.z)[channel + own + i];
  }

  for (int tile = first; tile < end; ++tile) {
    if (tile + 1 < end) copy_tile(o, tile + 1, channel);
    end_group();  // maybe of nothing
    await_groups<1>();
    show_to_products();
    __syncthreads();
    signed char* const places = shared_bytes() + kPlaces + tile % 2 * kRows * kColsStride;
#pragma unroll 1
    for (int at = 0; at < kRows; at += kProduct) {
      int sums[kProduct / 8][4];
      if (kParams.offset == kPerChannel) {
#pragma unroll
        for (int i = 0; i < kProduct / 2; ++i) sums[i / 4][i % 4] = z[i % 4 / 2];
      }
      sum_up(sums, weights, shared_bytes() + tile % 2 * kWindowBytes + at * 16);
#pragma unroll
      for (int i = 0; i < kProduct / 8; ++i) {
        const int by_pixel[4] = {sums[i][0], sums[i][2], sums[i][1], sums[i][3]};
        signed char* const place = places + (at + i * 8 + lane % 4 * 2) * kColsStride + own;
        finish_pairs(scalars, pair, by_pixel, place, place + kColsStride);
      }
    }
    __syncthreads();
    store_tile(o, tile, channel);
    // Residuals are copied over what is stored here; inputs and outputs are already told apart.
    if (kParams.residual) __syncthreads();
  }
}

}  // namespace jax_qconv
