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

__device__ float add_residual(const ConvParams& t, const Operands& o, float y, long long at) {
  if (!t.residual) return y;
  float steps = __int2float_rn(static_cast<const signed char*>(o.r)[at]);
  if (t.residual_zero_point) steps = __fsub_rn(steps, scalar(o.z_r));
  return __fmaf_rn(steps, scalar(o.m_r), y);
}

// The output before it is rounded. `at` is its index in [N, P, Q, K], `acc` its sum.
template <typename Real>
__device__ float epilogue(const ConvParams& t, const Operands& o, int acc, int channel,
                          long long at) {
  float y = __fmaf_rn(__int2float_rn(acc), element(o.m, channel), element(o.b, channel));
  if (!t.activation_first) y = add_residual(t, o, y, at);
  y = activate<Real>(t, o, y, channel);
  if (t.activation_first) y = add_residual(t, o, y, at);
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
// Rounded and saturated as `to_int8` does it, four in a word.
__device__ int pack_int8(const float (&y)[4]) {
  int word;
  asm("{\n"
      "  .reg .b32 upper;\n"
      "  cvt.pack.sat.s8.s32.b32 upper, %4, %3, 0;\n"
      "  cvt.pack.sat.s8.s32.b32 %0, %2, %1, upper;\n"
      "}"
      : "=r"(word)
      : "r"(__float2int_rn(y[0])), "r"(__float2int_rn(y[1])), "r"(__float2int_rn(y[2])),
        "r"(__float2int_rn(y[3])));
  return word;
}
#endif  // else whoever compiles this for the host says how

// Stores the output of a sum.
template <typename Real>
__device__ void finish(const ConvParams& t, const Operands& o, int acc, int channel, long long at) {
  acc += offset(t, o, channel, at);
  if (t.out == kInt32) {
    static_cast<int*>(o.out)[at] = acc;
    return;
  }
  const float y = epilogue<Real>(t, o, acc, channel, at);
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
