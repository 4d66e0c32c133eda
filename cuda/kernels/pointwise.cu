// 1x1 convolution of int8 to int8: a matrix product of few terms, whose time is that of its bytes.
//
// Bytes first. 64 -> 256 channels with a residual moves 9 bytes for 4 outputs, and sums 64 products
// for each: at 3 TB/s an SM has 13 bytes in a clock, 6 outputs, 370 products, of which its matrix
// units could do ten times as many. So what counts is that loads, arithmetic and stores overlap,
// and that each output costs few instructions: 128 in a clock leave 20.
//
// A block has kCols output channels, whose weights stay in shared memory, and walks down kRun tiles
// of kRows pixels. While it works on one, the inputs and residuals of the next are on their way
// into the other half of its buffers (cp.async). A warp computes 32 pixels by up to 64 channels
// with m16n8k32 products. Outputs take the places of the residuals that they were made from, and
// leave from there in rows of whole sectors. Rows in shared memory are 16 bytes longer than they
// need to be: then eight of them, read or written side by side, have banks of their own.
//
// The blocks of all channels of a tile run at the same time, so that its inputs come from memory
// once.
//
// Measured at batch 128. On an H100 (tests/bench/results/h100/rankings.json): 64 -> 256 channels at
// 56x56 takes 91.7 us with a residual (85 % of the speed of a copy; cuDNN's best 147.6) and 55.3
// without (78 %; 95.2), 128 -> 512 at 28x28 51.3 (76 %; 78.5) and 38.4 (56 %; 44.4). On an H200
// (results/h200): 16 -> 96 at 112x112 63.9 us, 144 -> 24 at 56x56 with a residual 27.4. From 256
// channels on cuDNN is as fast: there shared memory holds one block only, and reading it costs as
// much as the products.

namespace jax_qconv {

// Constants that the host writes before this source, beside those of products.h: kRows, the pixels
// of a tile, and kRun, the tiles of a block.
constexpr int kTerms = (kParams.c + kStep - 1) / kStep * kStep;
constexpr int kTermsStride = kTerms + 16;
constexpr int kPixels = kParams.n * kParams.out_size[0] * kParams.out_size[1] * kParams.out_size[2];

// What a block keeps in shared memory, as byte offsets.
constexpr int kWeights = 0;
constexpr int kInputs = kWeights + kCols * kTermsStride;
constexpr int kResiduals = kInputs + 2 * kRows * kTermsStride;
constexpr int kChannels = kResiduals + 2 * kRows * kColsStride;  // z, m, b, slopes
static_assert(kChannels + 4 * kCols * 4 == kSharedBytes, "the host computes the same");

// Rows of `kBytes` bytes from memory, `stride` apart, into rows `kStride` apart.
template <int kBytes, int kStride>
__device__ void copy_rows(signed char* to, const signed char* from, int stride, int first,
                          int count, int end) {
  constexpr int kChunk = chunk_of(kBytes), kChunks = kBytes / kChunk;
  for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
    const int row = i / kChunks, at = i % kChunks * kChunk;
    // Beyond the last row: that one again, whose outputs aren't stored.
    const long long source = min(first + row, end - 1);
    copy_bytes<kChunk>(to + row * kStride + at, from + source * stride + at);
  }
}

// Terms that a step has beyond the channels: zeros among the weights are enough.
__device__ void clear_weights() {
  for (int row = threadIdx.x; row < kCols; row += kThreads) {
    for (int term = kParams.c; term < kTerms; term += 4) {
      *reinterpret_cast<int*>(shared_bytes() + kWeights + row * kTermsStride + term) = 0;
    }
  }
}

__device__ void copy_tile(const Operands& o, int tile, int channel) {
  const int half = tile % 2, row = tile * kRows;
  copy_rows<kParams.c, kTermsStride>(shared_bytes() + kInputs + half * kRows * kTermsStride,
                                     static_cast<const signed char*>(o.x), kParams.c, row, kRows,
                                     kPixels);
  if (kParams.residual) {
    copy_rows<kCols, kColsStride>(shared_bytes() + kResiduals + half * kRows * kColsStride,
                                  static_cast<const signed char*>(o.r) + channel, kParams.k, row,
                                  kRows, kPixels);
  }
}

// Sums of 32 pixels by kWarpCols channels; thread 4 i + j has channels 2 j and 2 j + 1 of pixels i
// and i + 8 of each product.
__device__ void sum_up(int (&sums)[kDown][kAcross][4], const signed char* x, const signed char* w) {
  const int lane = threadIdx.x % 32, at = lane / 4 * kTermsStride + lane % 4 * 4;
#pragma unroll
  for (int term = 0; term < kTerms; term += kStep) {
    int a[kDown][4], b[kAcross][2];
#pragma unroll
    for (int i = 0; i < kDown * 4; ++i) {
      const int row = i / 4 * 16 + i % 2 * 8, byte = term + i % 4 / 2 * 16;
      a[i / 4][i % 4] = *reinterpret_cast<const int*>(x + at + row * kTermsStride + byte);
    }
#pragma unroll
    for (int i = 0; i < kAcross * 2; ++i) {
      const int row = i / 2 * 8, byte = term + i % 2 * 16;
      b[i / 2][i % 2] = *reinterpret_cast<const int*>(w + at + row * kTermsStride + byte);
    }
#pragma unroll
    for (int i = 0; i < kDown * kAcross; ++i) {
      multiply(sums[i / kAcross][i % kAcross], a[i / kAcross], b[i % kAcross]);
    }
  }
}

__device__ void store_tile(const Operands& o, int tile, int channel, const signed char* from) {
  constexpr int kChunk = chunk_of(kCols), kChunks = kCols / kChunk;
  signed char* const out = static_cast<signed char*>(o.out) + channel;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, at = i % kChunks * kChunk;
    const long long pixel = tile * kRows + row;
    if (pixel >= kPixels) break;
    store_chunk<kChunk>(out + pixel * kParams.k + at, from + row * kColsStride + at);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) pointwise(Operands o) {
  constexpr int kTiles = (kPixels + kRows - 1) / kRows, kParts = kParams.k / kCols;
  const int channel = blockIdx.x % kParts * kCols;
  const int first = static_cast<int>(blockIdx.x / kParts) * kRun;
  const int end = min(first + kRun, kTiles);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / (kCols / kWarpCols) * kWarpRows;
  const int col = warp % (kCols / kWarpCols) * kWarpCols;
  signed char* const channels = shared_bytes() + kChannels;

  copy_rows<kParams.c, kTermsStride>(shared_bytes() + kWeights,
                                     static_cast<const signed char*>(o.w), kParams.c, channel,
                                     kCols, kParams.k);
  copy_tile(o, first, channel);
  end_group();
  clear_weights();
  load_channels(o, channel, channels);
  const Scalars own = load_scalars(o);
  const signed char* const w = shared_bytes() + kWeights + col * kTermsStride;
  const int* const z = reinterpret_cast<const int*>(channels);

  for (int tile = first; tile < end; ++tile) {
    if (tile + 1 < end) copy_tile(o, tile + 1, channel);
    end_group();  // maybe of nothing
    await_groups<1>();
    __syncthreads();
    int sums[kDown][kAcross][4];
#pragma unroll
    for (int i = 0; i < kDown * kAcross * 4; ++i) {
      const int own_col = col + i / 4 % kAcross * 8 + lane % 4 * 2 + i % 2;
      sums[i / 4 / kAcross][i / 4 % kAcross][i % 4] =
          kParams.offset == kPerChannel ? z[own_col] : 0;
    }
    const int half = tile % 2;
    sum_up(sums, shared_bytes() + kInputs + (half * kRows + row) * kTermsStride, w);
    signed char* const places = shared_bytes() + kResiduals + half * kRows * kColsStride;
    finish_tile(own, sums, channels, places + (row + lane / 4) * kColsStride + col + lane % 4 * 2,
                col + lane % 4 * 2);
    __syncthreads();
    store_tile(o, tile, channel, places);
    // Residuals are copied over what is stored here; inputs and outputs are already told apart.
    if (kParams.residual) __syncthreads();
  }
}

}  // namespace jax_qconv
