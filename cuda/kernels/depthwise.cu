// Depthwise convolution: each output channel sees one input channel.
//
// Bytes first. The arithmetic is next to nothing (a 3x3 kernel does 9 products for the 2 bytes of
// an input and an output), so memory is the limit: 12 bytes per clock are an SM's share of 3 TB/s,
// 6 outputs per clock. An SM issues 128 thread instructions per clock, half of them on one kind of
// unit (dp4a and byte permutations): that leaves 21 instructions for an output, or 10 of one kind.
//
// Bytes of a channel lie C bytes apart, and dp4a multiplies the four of one word. So a thread takes
// 4 neighbouring channels, one word of each pixel, and transposes words of 4 taps of a row into
// words of one channel: 6 permutations that all kernel rows and all outputs that see them share.
// Then 4 products cost one instruction. Fewer taps need no whole transposition: zeros among the
// weights choose bytes. A thread walks down a tile of kTileRows x kTileCols outputs: every input
// row is loaded once, while the one before is multiplied, and sums live only while kernel rows
// reach them. Weights stay in registers. What lies outside is decided at compile time for all
// places but those that a border may cut.
//
// Instructions for an output, counted in the code for sm_90 (int8, relu, 56x56, tiles of 4
// columns): 3x3 11 (7 rows), 5x5 22 (8 rows), 7x7 31 (8 rows), of which 3, 10 and 14 are dp4a.
//
// Measured on an H200, batch 128, as the share of a copy's speed, channels not padded beyond 16s
// (tests/bench/results/h200/kinds.json): 3x3 at 112x112 67 and 91 %, at 56x56 66 and 75 %, at 28x28
// 57 and 63 %, at 14x14 54 to 59 %: the fewer outputs, the more the start of a kernel counts. What
// limits 5x5 are the instructions.

namespace jax_qconv {

// Constants that the host writes before this source: kParams, the convolution; kTileRows and
// kTileCols (0: the general kernel); kThreads of a block; kStaged, whether weights go through
// shared memory.
constexpr int kTapRows = kParams.kernel[1], kTapCols = kParams.kernel[2];
constexpr int kTaps = kParams.kernel[0] * kTapRows * kTapCols;
constexpr int kWords = kParams.c / 4;  // of a pixel
constexpr int kStepRows = kParams.stride[1], kStepCols = kParams.stride[2];
constexpr int kGapRows = kParams.dilation[1], kGapCols = kParams.dilation[2];

// Four channels of what the epilogue reads, in registers.
struct Channels {
  float m[4], b[4], slopes[4];
  float m_r, z_r, lower, upper, m_y, b_y;
};

__device__ void load4(float (&to)[4], const void* from, int word) {
  const float4 four = __ldg(static_cast<const float4*>(from) + word);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
__device__ void load4(int (&to)[4], const void* from, long long word) {
  const int4 four = __ldg(static_cast<const int4*>(from) + word);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ Channels load_channels(const Operands& o, int word) {
  Channels to = {};
  if (kParams.out == kInt32) return to;
  load4(to.m, o.m, word);
  load4(to.b, o.b, word);
  if (kParams.activation == kPrelu) load4(to.slopes, o.slopes, word);
  if (kParams.residual) to.m_r = scalar(o.m_r);
  if (kParams.residual_zero_point) to.z_r = scalar(o.z_r);
  if (kParams.activation == kClip) to.lower = scalar(o.lower), to.upper = scalar(o.upper);
  if (kParams.requantize) to.m_y = scalar(o.m_y), to.b_y = scalar(o.b_y);
  return to;
}

// Stores 4 channels of a pixel: word `at` of [N, P, Q, K / 4].
__device__ void finish4(const Operands& o, const Channels& own, const int (&sums)[4],
                        long long at) {
  constexpr ConvParams t = kParams;
  int acc[4] = {sums[0], sums[1], sums[2], sums[3]};
  if (t.offset == kMap) {
    int z[4];
    load4(z, o.z, at % (static_cast<long long>(t.out_size[1]) * t.out_size[2] * kWords));
    for (int i = 0; i < 4; ++i) acc[i] += z[i];
  }
  if (t.out == kInt32) {
    static_cast<int4*>(o.out)[at] = {acc[0], acc[1], acc[2], acc[3]};
    return;
  }
  signed char r[4] = {};
  if (t.residual) {
    const int word = __ldg(static_cast<const int*>(o.r) + at);
    for (int i = 0; i < 4; ++i) r[i] = static_cast<signed char>(word >> 8 * i);
  }
  // The epilogue of all kernels, reading registers.
  Operands near;
  near.m = own.m, near.b = own.b, near.slopes = own.slopes, near.r = r;
  near.m_r = &own.m_r, near.z_r = &own.z_r, near.lower = &own.lower, near.upper = &own.upper;
  near.m_y = &own.m_y, near.b_y = &own.b_y;
  float y[4];
  for (int i = 0; i < 4; ++i) y[i] = epilogue<float>(t, near, acc[i], i, i);
  if (t.out == kInt8) {
    static_cast<int*>(o.out)[at] = pack_int8(y);
  } else if (t.out == kFloat32) {
    static_cast<float4*>(o.out)[at] = {y[0], y[1], y[2], y[3]};
  } else {
    unsigned halves[4];
    for (int i = 0; i < 4; ++i) {
      halves[i] = t.out == kBfloat16 ? to_bfloat16(y[i]) : to_float16(y[i]);
    }
    static_cast<int2*>(o.out)[at] = {static_cast<int>(halves[0] | halves[1] << 16),
                                     static_cast<int>(halves[2] | halves[3] << 16)};
  }
}

// Taps of a kernel row go in fours; how many of them there are from tap 4 * `four` on.
constexpr int kFours = (kTapCols + 3) / 4;
__device__ constexpr int live(int four) {
  return kTapCols - 4 * four < 4 ? kTapCols - 4 * four : 4;
}

// The weights of channel `lane` for four taps, from the taps' bytes of 4 channels in a row; where
// there are fewer, at the bytes that `Row::operand` has them.
__device__ int packed_weights(const int (&raw)[kTaps], int lane, int tap_row, int four) {
  const int count = live(four), first = lane * kTaps + tap_row * kTapCols + 4 * four;
  const int bytes =
      __byte_perm(raw[first / 4], raw[(first + count - 1) / 4], 0x3210 + 0x1111 * (first % 4));
  if (count == 1) return (bytes & 0xff) << 8 * lane;
  if (count == 2) return (bytes & 0xffff) << 16 * (lane % 2);
  return count == 3 ? bytes & 0xffffff : bytes;
}

// The kTaps words of weights that 4 channels have. Those of neighbours lie that far apart: many
// are read in a row by the block, and handed out from shared memory.
__device__ void load_weights(const Operands& o, int word, int (&raw)[kTaps]) {
  const int* w = static_cast<const int*>(o.w);
  if constexpr (kStaged) {
    constexpr int kAll = kWords * kTaps, kStride = kTaps | 1;  // odd: each lane has its own bank
    constexpr int kSlots = kWords < kThreads ? kWords : kThreads;
    __shared__ int staged[kSlots * kStride];
    const int first = blockIdx.x * static_cast<unsigned>(kThreads) % kWords * kTaps;
    for (int i = threadIdx.x; i < kSlots * kTaps; i += kThreads) {
      const int at = first + i < kAll ? first + i : first + i - kAll;
      staged[i / kTaps * kStride + i % kTaps] = __ldg(w + at);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTaps; ++i) raw[i] = staged[threadIdx.x % kSlots * kStride + i];
  } else {
#pragma unroll
    for (int i = 0; i < kTaps; ++i) raw[i] = __ldg(w + word * kTaps + i);
  }
}

// A row of input words, and the transposed words of the taps that start at each.
template <int kCols>
struct Row {
  int words[kCols];
  int low[kCols], high[kCols];  // 2 taps of channels 0 and 1, of 2 and 3
  int quad[kCols][4];           // 4 taps of each channel

  // What isn't read after all costs nothing. Beyond the row only weights of zero follow.
  __device__ void transpose() {
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
      const int next = col + kGapCols < kCols ? words[col + kGapCols] : 0;
      low[col] = __byte_perm(words[col], next, 0x5140);
      high[col] = __byte_perm(words[col], next, 0x7362);
    }
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
      const bool inside = col + 2 * kGapCols < kCols;
      const int after = inside ? col + 2 * kGapCols : 0;
      const int low2 = inside ? low[after] : 0, high2 = inside ? high[after] : 0;
      quad[col][0] = __byte_perm(low[col], low2, 0x5410);
      quad[col][1] = __byte_perm(low[col], low2, 0x7632);
      quad[col][2] = __byte_perm(high[col], high2, 0x5410);
      quad[col][3] = __byte_perm(high[col], high2, 0x7632);
    }
  }

  __device__ int operand(int col, int count, int lane) const {
    if (count == 1) return words[col];
    if (count == 2) return lane < 2 ? low[col] : high[col];
    return quad[col][lane];
  }
};

// Two axes, as many output as input channels. kTaps words hold the weights of 4 channels.
template <int kRows, int kCols>
__device__ void tiled(const Operands& o) {
  constexpr int kSpanRows = (kRows - 1) * kStepRows + (kTapRows - 1) * kGapRows + 1;
  constexpr int kSpanCols = (kCols - 1) * kStepCols + (kTapCols - 1) * kGapCols + 1;
  constexpr int kTilesDown = (kParams.out_size[1] + kRows - 1) / kRows;
  constexpr int kTilesAcross = (kParams.out_size[2] + kCols - 1) / kCols;
  // Neighbouring threads have neighbouring channels, then tiles side by side. Not more than there
  // are output words, so 32 bits hold it.
  unsigned rest = blockIdx.x * kThreads + threadIdx.x;
  const int word = rest % kWords;
  rest /= kWords;
  const int out_col = rest % kTilesAcross * kCols;
  rest /= kTilesAcross;
  const int out_row = rest % kTilesDown * kRows;
  const int image = rest / kTilesDown;

  int raw[kTaps], weights[kTapRows][kFours][4];
  load_weights(o, word, raw);
  if (image >= kParams.n) return;
#pragma unroll
  for (int i = 0; i < kTapRows * kFours * 4; ++i) {
    weights[i / 4 / kFours][i / 4 % kFours][i % 4] =
        packed_weights(raw, i % 4, i / 4 / kFours, i / 4 % kFours);
  }
  const Channels own = load_channels(o, word);
  int first[4] = {};
  if (kParams.offset == kPerChannel) load4(first, o.z, word);

  int sums[kRows][kCols][4];
#pragma unroll
  for (int i = 0; i < kRows * kCols * 4; ++i)
    sums[i / 4 / kCols][i / 4 % kCols][i % 4] = first[i % 4];

  const int* x = static_cast<const int*>(o.x) + word;
  const int top = out_row * kStepRows - kParams.pad[1];
  const int left = out_col * kStepCols - kParams.pad[2];
  // Of the last tile. Which places can be outside at all is known to the compiler by these.
  constexpr int kLastTop = (kTilesDown - 1) * kRows * kStepRows - kParams.pad[1];
  constexpr int kLastLeft = (kTilesAcross - 1) * kCols * kStepCols - kParams.pad[2];
  auto load_row = [&](int row, int (&words)[kSpanCols]) {
    const bool row_inside = (row >= kParams.pad[1] || top + row >= 0) &&
                            (kLastTop + row < kParams.size[1] || top + row < kParams.size[1]);
    // Wraps where there is no such row.
    const unsigned line = static_cast<unsigned>(image) * kParams.size[1] + (top + row);
    const int start = static_cast<int>(line * kParams.size[2] + left);
    const int* from = x + static_cast<long long>(start) * kWords;
#pragma unroll
    for (int col = 0; col < kSpanCols; ++col) {
      const bool inside = row_inside && (col >= kParams.pad[2] || left + col >= 0) &&
                          (kLastLeft + col < kParams.size[2] || left + col < kParams.size[2]);
      words[col] = inside ? __ldg(from + static_cast<long long>(col) * kWords) : 0;
    }
  };

  int next[kSpanCols];
  load_row(0, next);
#pragma unroll
  for (int row = 0; row < kSpanRows; ++row) {
    Row<kSpanCols> in;
#pragma unroll
    for (int col = 0; col < kSpanCols; ++col) in.words[col] = next[col];
    if (row + 1 < kSpanRows) load_row(row + 1, next);  // on its way while this one is multiplied
    in.transpose();
#pragma unroll
    for (int tap_row = 0; tap_row < kTapRows; ++tap_row) {
      const int from = row - tap_row * kGapRows;  // first input row of an output row, if it is one
      if (from < 0 || from % kStepRows != 0 || from / kStepRows >= kRows) continue;
#pragma unroll
      for (int i = 0; i < kCols * kFours * 4; ++i) {
        const int col = i / 4 / kFours, four = i / 4 % kFours, lane = i % 4;
        int& sum = sums[from / kStepRows][col][lane];
        sum = __dp4a(in.operand(col * kStepCols + 4 * four * kGapCols, live(four), lane),
                     weights[tap_row][four][lane], sum);
      }
    }
    // The output row whose last input row this is.
    const int from = row - (kTapRows - 1) * kGapRows, done = from / kStepRows;
    if (from < 0 || from % kStepRows != 0) continue;
    if (kParams.out_size[1] % kRows != 0 && out_row + done >= kParams.out_size[1]) continue;
    const int pixel =
        (image * kParams.out_size[1] + out_row + done) * kParams.out_size[2] + out_col;
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
      if (kParams.out_size[2] % kCols != 0 && out_col + col >= kParams.out_size[2]) continue;
      finish4(o, own, sums[done][col], static_cast<long long>(pixel + col) * kWords + word);
    }
  }
}

// Any number of axes, any multiple of the input's channels: one output a thread.
__device__ void general(const Operands& o) {
  constexpr ConvParams t = kParams;
  const unsigned at = blockIdx.x * kThreads + threadIdx.x;  // less than 2^31, and a block
  const int channel = at % t.k;
  unsigned rest = at / t.k;
  int first[3];  // of the window, along each axis
  for (int axis = 2; axis >= 0; --axis) {
    first[axis] = static_cast<int>(rest % t.out_size[axis]) * t.stride[axis] - t.pad[axis];
    rest /= t.out_size[axis];
  }
  if (rest >= t.n) return;
  const int image = rest;
  const signed char* x = static_cast<const signed char*>(o.x) + channel / (t.k / t.c);
  const signed char* w =
      static_cast<const signed char*>(o.w) + static_cast<long long>(channel) * kTaps;
  int sum = 0;
  for (int i = 0; i < t.kernel[0]; ++i) {
    const int z = first[0] + i * t.dilation[0];
    if (z < 0 || z >= t.size[0]) continue;
    for (int j = 0; j < t.kernel[1]; ++j) {
      const int y = first[1] + j * t.dilation[1];
      if (y < 0 || y >= t.size[1]) continue;
      const int row = ((image * t.size[0] + z) * t.size[1] + y) * t.size[2];
      for (int k = 0; k < t.kernel[2]; ++k) {
        const int col = first[2] + k * t.dilation[2];
        if (col < 0 || col >= t.size[2]) continue;
        sum +=
            x[static_cast<long long>(row + col) * t.c] * w[(i * t.kernel[1] + j) * t.kernel[2] + k];
      }
    }
  }
  finish<float>(t, o, sum, channel, at);
}

extern "C" __global__ void __launch_bounds__(kThreads) depthwise(Operands o) {
  if constexpr (kTileRows > 0) {
    tiled<kTileRows, kTileCols>(o);
  } else {
    general(o);
  }
}

}  // namespace jax_qconv
