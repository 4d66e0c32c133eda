// Convolution of few channels, as networks begin with: an implicit matrix product on the matrix
// units.
//
// Bytes first. 7x7 taps by 2 of 224x224 with 4 channels, 3 of them real, to 64: an output of one
// byte comes from a quarter of an input, so writing is the limit, 13 outputs in a clock of an SM at
// 3 TB/s. That leaves 10 instructions for an output, and 224 products, of which the matrix units
// do 2,000 in a clock.
//
// The taps of a kernel row lie side by side in memory, whatever the stride: S * C bytes from where
// the window begins. So the terms of a product are taken from rows as they are, 16 at a time, and
// nothing is rearranged; weights of zero fill the last 16 of each kernel row. A block makes tiles
// of kTileRows x kTileCols pixels of kCols channels, kRun of them one after the other, and while
// it works on one, the input rows of the next are on their way into the other half of its buffers.
// A warp makes 32 pixels at a time, 16 in a row of the image, and stores them on its own.
//
// Measured on an H200, batch 128 (tests/bench/results/h200): 7x7 by 2 to 64 channels 109.9 us, 23 %
// of the roofline with three input channels (bf16 437; as 64 channels of blocks of 4x4, 301 on an
// H100); 3x3 by 2 to 32 38.4 us (cuDNN 111); 3x3 by 1 to 64 193.7 us.

namespace jax_qconv {

// Constants that the host writes before this source, beside those of products.h: kTileRows and
// kTileCols, the pixels of a tile, and kRun, the tiles of a block.
constexpr int kC = kParams.c, kTapRows = kParams.kernel[1];
constexpr int kStepRows = kParams.stride[1], kStepBytes = kParams.stride[2] * kC;
constexpr int kHalf = kStep / 2;  // terms that are taken from one place
constexpr int kRowTerms = kParams.kernel[2] * kC;
constexpr int kRowHalves = (kRowTerms + kHalf - 1) / kHalf, kHalves = kTapRows * kRowHalves;
constexpr int kTerms = (kHalves + 1) / 2 * kStep, kTermsStride = kTerms + 16;
constexpr int kWarps = kThreads / 32, kPairs = kTileRows * kTileCols / kWarpRows;

// The input rows of a tile, and the bytes of each.
constexpr int kLines = (kTileRows - 1) * kStepRows + kTapRows;
constexpr int kLine = ((kTileCols - 1) * kStepBytes + kRowHalves * kHalf + 15) / 16 * 16;

// What a block keeps in shared memory, as byte offsets.
constexpr int kWeights = 0;
constexpr int kInputs = kWeights + kCols * kTermsStride;
constexpr int kOutputs = kInputs + 2 * kLines * kLine;
constexpr int kChannels = kOutputs + kWarps * kWarpRows * kColsStride;
static_assert(kChannels + 4 * kCols * 4 == kSharedBytes, "the host computes the same");
static_assert(kPairs % kWarps == 0 && kTileCols % 16 == 0, "all warps have as much to do");

constexpr int kTilesDown = (kParams.out_size[1] + kTileRows - 1) / kTileRows;
constexpr int kTilesAcross = (kParams.out_size[2] + kTileCols - 1) / kTileCols;

struct Place {
  int image, row, col;  // of the first output of a tile
};
__device__ Place place_of(int tile) {
  return {tile / kTilesAcross / kTilesDown, tile / kTilesAcross % kTilesDown * kTileRows,
          tile % kTilesAcross * kTileCols};
}

// Where 16 pixels of a tile begin.
__device__ int row_of(int part) { return part / (kTileCols / 16); }
__device__ int col_of(int part) { return part % (kTileCols / 16) * 16; }

__device__ void copy_tile(const Operands& o, int tile) {
  constexpr int kChunk = chunk_of(kC), kChunks = kLine / kChunk;
  const Place place = place_of(tile);
  const int top = place.row * kStepRows - kParams.pad[1];
  const int left = place.col * kParams.stride[2] - kParams.pad[2];
  signed char* const to = shared_bytes() + kInputs + tile % 2 * kLines * kLine;
  for (int i = threadIdx.x; i < kLines * kChunks; i += kThreads) {
    const int line = i / kChunks, at = i % kChunks * kChunk;
    const int y = top + line, x = left + at / kC;
    signed char* const chunk = to + line * kLine + at;
    if (y >= 0 && y < kParams.size[1] && x >= 0 && x < kParams.size[2]) {
      const long long row = static_cast<long long>(place.image) * kParams.size[1] + y;
      const long long pixel = row * kParams.size[2] + x;
      copy_bytes<kChunk>(chunk, static_cast<const signed char*>(o.x) + pixel * kC + at % kC);
    } else {
#pragma unroll
      for (int byte = 0; byte < kChunk; byte += 4) *reinterpret_cast<int*>(chunk + byte) = 0;
    }
  }
}

// Weights [K, R, S, C] as the products take them.
__device__ void load_weights(const Operands& o, int channel) {
  constexpr int kWords = kTerms / 4, kRowWords = kRowHalves * kHalf / 4;
  const int* const from = static_cast<const int*>(o.w) + channel * kTapRows * kRowTerms / 4;
  for (int i = threadIdx.x; i < kCols * kWords; i += kThreads) {
    const int k = i / kWords, r = i % kWords / kRowWords, word = i % kWords % kRowWords;
    const bool real = r < kTapRows && word < kRowTerms / 4;
    *reinterpret_cast<int*>(shared_bytes() + kWeights + k * kTermsStride + i % kWords * 4) =
        real ? from[(k * kTapRows + r) * (kRowTerms / 4) + word] : 0;
  }
}

// Where the terms of a half are, from where those of a pixel begin. Beyond the last: anywhere.
__device__ constexpr int half_at(int half) {
  return half < kHalves ? half / kRowHalves * kLine + half % kRowHalves * kHalf : 0;
}

// Sums of 32 pixels, of which each 16 begin at a place of their own.
__device__ void sum_up(int (&sums)[kDown][kAcross][4], const signed char* const (&x)[kDown],
                       const signed char* w) {
#pragma unroll
  for (int term = 0; term < kTerms; term += kStep) {
    int a[kDown][4], b[kAcross][2];
#pragma unroll
    for (int i = 0; i < kDown * 4; ++i) {
      const int at = i % 2 * 8 * kStepBytes + half_at(term / kHalf + i % 4 / 2);
      a[i / 4][i % 4] = *reinterpret_cast<const int*>(x[i / 4] + at);
    }
#pragma unroll
    for (int i = 0; i < kAcross * 2; ++i) {
      const int at = i / 2 * 8 * kTermsStride + term + i % 2 * kHalf;
      b[i / 2][i % 2] = *reinterpret_cast<const int*>(w + at);
    }
#pragma unroll
    for (int i = 0; i < kDown * kAcross; ++i) {
      multiply(sums[i / kAcross][i % kAcross], a[i / kAcross], b[i % kAcross]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) stem(Operands o) {
  constexpr int kTiles = kParams.n * kTilesDown * kTilesAcross, kParts = kParams.k / kCols;
  const int channel = blockIdx.x % kParts * kCols;
  const int first = static_cast<int>(blockIdx.x / kParts) * kRun;
  const int end = min(first + kRun, kTiles);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  signed char* const channels = shared_bytes() + kChannels;

  copy_tile(o, first);
  end_group();
  load_weights(o, channel);
  load_channels(o, channel, channels);
  const Scalars own = load_scalars(o);
  const signed char* const w = shared_bytes() + kWeights + lane / 4 * kTermsStride + lane % 4 * 4;
  const int* const z = reinterpret_cast<const int*>(channels);
  signed char* const places = shared_bytes() + kOutputs + warp * kWarpRows * kColsStride;

  for (int tile = first; tile < end; ++tile) {
    if (tile + 1 < end) copy_tile(o, tile + 1);
    end_group();  // maybe of nothing
    await_groups<1>();
    __syncthreads();
    const Place place = place_of(tile);
    const signed char* const lines = shared_bytes() + kInputs + tile % 2 * kLines * kLine;
    for (int pair = warp; pair < kPairs; pair += kWarps) {
      const signed char* x[kDown];
#pragma unroll
      for (int down = 0; down < kDown; ++down) {
        const int part = pair * kDown + down;
        x[down] = lines + row_of(part) * kStepRows * kLine +
                  (col_of(part) + lane / 4) * kStepBytes + lane % 4 * 4;
      }
      int sums[kDown][kAcross][4];
#pragma unroll
      for (int i = 0; i < kDown * kAcross * 4; ++i) {
        const int k = i / 4 % kAcross * 8 + lane % 4 * 2 + i % 2;
        sums[i / 4 / kAcross][i / 4 % kAcross][i % 4] = kParams.offset == kPerChannel ? z[k] : 0;
      }
      sum_up(sums, x, w);
      finish_tile(own, sums, channels, places + lane / 4 * kColsStride + lane % 4 * 2,
                  lane % 4 * 2);
      __syncwarp();
      constexpr int kChunk = chunk_of(kCols), kChunks = kCols / kChunk;
#pragma unroll
      for (int i = lane; i < kWarpRows * kChunks; i += 32) {
        const int pixel = i / kChunks, at = i % kChunks * kChunk;
        const int part = pair * kDown + pixel / 16;
        const int p = place.row + row_of(part), q = place.col + col_of(part) + pixel % 16;
        if (p >= kParams.out_size[1] || q >= kParams.out_size[2]) continue;
        const long long line = static_cast<long long>(place.image) * kParams.out_size[1] + p;
        const long long out = (line * kParams.out_size[2] + q) * kParams.k + channel + at;
        store_chunk<kChunk>(static_cast<signed char*>(o.out) + out,
                            places + pixel * kColsStride + at);
      }
      __syncwarp();
    }
    __syncthreads();
  }
}

}  // namespace jax_qconv
