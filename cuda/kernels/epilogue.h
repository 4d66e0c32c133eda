// From an int32 sum to a stored output, by the numerics contract: every step correctly rounded,
// each multiplication contracted with its addition where the contract says so and nowhere else.
// With constant parameters all branches fold away.

namespace jax_qconv {

enum { kInt8, kInt32, kFloat32, kBfloat16, kFloat16 };  // OutType of problem.h
enum {                                                  // Activation of problem.h
  kNone,
  kRelu,
  kClip,
  kLeakyRelu,
  kPrelu,
  kHardSigmoid,
  kHardSwish,
  kSigmoid,
  kTanh,
  kSilu,
  kGelu,
  kGeluTanh
};
enum { kNoOffset, kPerChannel, kMap };  // Offset of problem.h

__device__ float scalar(const void* value) { return *static_cast<const float*>(value); }
__device__ float element(const void* values, int index) {
  return static_cast<const float*>(values)[index];
}

// Conversions between ints and floats take an SM several times as long as additions, so kernels do
// without: floats near 1.5 * 2^23 are whole, and an int of up to 22 bits that is added to the bits
// of that number is added to its value.
constexpr int kWholeBits = 0x4b400000, kMostWhole = 1 << 22;
constexpr float kWhole = 12582912.0f;

// What was added to kWholeBits.
__device__ float from_whole(int bits) { return __fsub_rn(__int_as_float(bits), kWhole); }

// The signed bytes of a word.
__device__ void unpack_int8(float (&to)[4], int word) {
  constexpr int kBits = 0x4b000000;  // of 2^23
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = __fsub_rn(__int_as_float(__byte_perm(word ^ 0x80808080, kBits, 0x7540 + i)),
                      8388608.0f + 128.0f);
  }
}

__device__ float hard_sigmoid(float y) {
  return fminf(fmaxf(__fmaf_rn(y, 1.0f / 6, 0.5f), 0.0f), 1.0f);
}

__device__ double divide(double a, double b) { return a / b; }
__device__ float divide(float a, float b) { return __fdividef(a, b); }

// `Real` is what functions are computed in that have no one right way to round.
template <typename Real>
__device__ float activate(const ConvParams& t, const Operands& o, float y, int channel) {
  const Real real = y, one = 1;
  switch (t.activation) {
    case kRelu:
      // int8 has no NaN to keep, nor a zero below zero.
      if (t.out == kInt8 && !t.requantize && !t.activation_first) return fmaxf(y, 0.0f);
      return y < 0.0f ? 0.0f : y;
    case kClip:
      return fminf(fmaxf(y, scalar(o.lower)), scalar(o.upper));
    case kLeakyRelu:
      return y > 0.0f ? y : __fmul_rn(y, t.slope);
    case kPrelu:
      return y > 0.0f ? y : __fmul_rn(y, element(o.slopes, channel));
    case kHardSigmoid:
      return hard_sigmoid(y);
    case kHardSwish:
      return __fmul_rn(y, hard_sigmoid(y));
    case kSigmoid:
      return divide(one, one + exp(-real));
    case kTanh:
      return tanh(real);
    case kSilu:
      return divide(real, one + exp(-real));
    case kGelu:
      return real / 2 * (one + erf(real * Real(0.70710678118654752)));
    case kGeluTanh: {
      const Real cubic = real + Real(0.044715) * real * real * real;
      return real / 2 * (one + tanh(Real(0.79788456080286536) * cubic));
    }
    default:
      return y;
  }
}

__device__ float add_residual(const ConvParams& t, const Operands& o, float y, float residual) {
  if (!t.residual) return y;
  if (t.residual_zero_point) residual = __fsub_rn(residual, scalar(o.z_r));
  return __fmaf_rn(residual, scalar(o.m_r), y);
}

// The output before it is rounded, of its sum and the residual that is added.
template <typename Real>
__device__ float epilogue(const ConvParams& t, const Operands& o, float sum, float residual,
                          int channel) {
  float y = __fmaf_rn(sum, element(o.m, channel), element(o.b, channel));
  if (!t.activation_first) y = add_residual(t, o, y, residual);
  y = activate<Real>(t, o, y, channel);
  if (t.activation_first) y = add_residual(t, o, y, residual);
  if (t.requantize) y = __fmaf_rn(y, scalar(o.m_y), scalar(o.b_y));
  return y;
}

// What a zero point of x adds to the sum of an output.
__device__ int offset(const ConvParams& t, const Operands& o, int channel, long long at) {
  const int* z = static_cast<const int*>(o.z);
  const long long image = static_cast<long long>(t.out_size[0]) * t.out_size[1] * t.out_size[2];
  return t.offset == kNoOffset ? 0 : t.offset == kPerChannel ? z[channel] : z[at % (image * t.k)];
}

__device__ signed char to_int8(float y) { return min(max(__float2int_rn(y), -128), 127); }
#ifdef __CUDA_ARCH__
__device__ unsigned short to_bfloat16(float y) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(y));
  return bits;
}
__device__ unsigned short to_float16(float y) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(y));
  return bits;
}
#endif  // else whoever compiles this for the host says how

// Whether an activation comes last, so that the output is a number within its bounds.
__device__ constexpr bool ends_with(const ConvParams& t, int activation) {
  return t.activation == activation && !t.activation_first && !t.requantize;
}

// Bounds of clip within int8's, which it then needn't be held to again.
__device__ void tighten(const ConvParams& t, float& lower, float& upper) {
  if (t.out != kInt8 || !ends_with(t, kClip)) return;
  lower = fminf(fmaxf(lower, -128.0f), 127.0f);  // NaN bounds nothing
  upper = fmaxf(fminf(upper, 127.0f), -128.0f);
}

// Rounded and saturated as `to_int8` does it, four in a word. Bounds of clip are tightened.
__device__ int pack_int8(const ConvParams& t, const float (&y)[4]) {
  int bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float value = y[i];
    if (ends_with(t, kRelu)) {
      value = fminf(value, 127.0f);
    } else if (!ends_with(t, kClip)) {
      value = value == value ? fminf(fmaxf(value, -128.0f), 127.0f) : 0.0f;
    }
    bits[i] = __float_as_int(__fadd_rn(value, kWhole));
  }
  return __byte_perm(__byte_perm(bits[0], bits[1], 0x40), __byte_perm(bits[2], bits[3], 0x40),
                     0x5410);
}

// Stores the output of a sum.
template <typename Real>
__device__ void finish(const ConvParams& t, const Operands& o, int acc, int channel, long long at) {
  acc += offset(t, o, channel, at);
  if (t.out == kInt32) {
    static_cast<int*>(o.out)[at] = acc;
    return;
  }
  const float residual =
      t.residual ? __int2float_rn(static_cast<const signed char*>(o.r)[at]) : 0.0f;
  const float y = epilogue<Real>(t, o, __int2float_rn(acc), residual, channel);
  switch (t.out) {
    case kInt8:
      static_cast<signed char*>(o.out)[at] = to_int8(y);
      break;
    case kFloat32:
      static_cast<float*>(o.out)[at] = y;
      break;
    case kBfloat16:
      static_cast<unsigned short*>(o.out)[at] = to_bfloat16(y);
      break;
    case kFloat16:
      static_cast<unsigned short*>(o.out)[at] = to_float16(y);
      break;
  }
}

}  // namespace jax_qconv
