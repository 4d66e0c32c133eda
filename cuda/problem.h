// A convolution call without its data: shapes, geometry, epilogue.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/conv_params.h"
#include "status.h"

namespace jax_qconv {

// Kernels and their text form name these by number, in this order.
enum class OutType { kInt8, kInt32, kFloat32, kBfloat16, kFloat16 };
enum class Activation {
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
enum class Offset { kNone, kPerChannel, kMap };

size_t SizeOf(OutType type);

// Depth, height, width; a 2-D convolution has a depth of one.
using Axes = std::array<int64_t, 3>;

// Mirrors jax_qconv._problem.Problem, whose text form `Parse` reads. Channels are the stored ones.
struct Problem {
  int rank = 2;                             // spatial axes that the text has: 2 or 3
  int64_t n = 0, c = 0, k = 0, groups = 1;  // channels of input and output
  Axes size{}, kernel{}, out_size{};        // the last is derived
  Axes strides{}, dilation{}, pad_before{}, pad_after{};
  OutType out = OutType::kInt8;
  Activation activation = Activation::kNone;
  float slope = 0;  // of leaky relu
  bool residual = false;
  Offset offset = Offset::kNone;  // int32 added to the sums
  bool residual_zero_point = false;
  bool activation_first = false;  // the residual is added after the activation
  bool requantize = false;        // fma(y, m_y, b_y) follows the activation

  std::string text;  // what was parsed: the key of caches and the words of messages

  // Reads the text form and checks every field. The error names the field and what was found.
  static ErrorOr<Problem> Parse(const std::string& text);

  bool has_epilogue() const { return out != OutType::kInt32; }
  // Whether engines compute the activation each in its own way.
  bool approximate() const { return activation >= Activation::kSigmoid; }
  bool depthwise() const { return groups > 1 && groups == c; }
  int64_t channels_per_group() const { return c / groups; }
  int64_t pixels() const { return n * Product(out_size); }
  int64_t w_elements() const { return k * Product(kernel) * channels_per_group(); }
  int64_t out_elements() const { return pixels() * k; }
  std::vector<int64_t> x_dims() const { return Dims(n, size, c); }
  std::vector<int64_t> w_dims() const { return Dims(k, kernel, channels_per_group()); }
  std::vector<int64_t> out_dims() const { return Dims(n, out_size, k); }
  std::vector<int64_t> offset_dims() const;
  size_t out_bytes() const { return out_elements() * SizeOf(out); }

  static int64_t Product(const Axes& axes) { return axes[0] * axes[1] * axes[2]; }

 private:
  // Of so many axes as the text has.
  std::vector<int64_t> Dims(int64_t first, const Axes& axes, int64_t last) const;
};

// The problem as kernels see it.
ConvParams ParamsOf(const Problem& problem);

// A member of Operands that a call has, and the shape and size of its elements.
struct OperandSlot {
  const char* name;
  const void* Operands::* member;
  std::vector<int64_t> dims;
  size_t bytes_per_element;
  bool is_int = false;  // of four bytes that aren't a float

  int64_t elements() const {
    return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  }
};

// The inputs of a call, in its order.
std::vector<OperandSlot> InputSlots(const Problem& problem);

}  // namespace jax_qconv
