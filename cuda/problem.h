// A convolution call without its data: shapes, geometry, epilogue.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "status.h"

namespace jax_qconv {

enum class OutType { kInt8, kInt32, kFloat32, kBfloat16, kFloat16 };
enum class Activation { kNone, kRelu, kClip, kLeakyRelu };

size_t SizeOf(OutType type);

// Mirrors jax_qconv._spec.Problem, whose text form `Parse` reads. Channels are the stored ones.
struct Problem {
  int64_t n = 0, h = 0, w = 0, c = 0;            // input, NHWC
  int64_t k = 0, r = 0, s = 0;                   // weights, KRSC
  int64_t p = 0, q = 0;                          // output height and width, derived
  std::array<int64_t, 2> strides{}, dilation{};  // height, width
  std::array<int64_t, 4> padding{};              // top, bottom, left, right
  OutType out = OutType::kInt8;
  Activation activation = Activation::kNone;
  float slope = 0;  // of leaky relu
  bool residual = false;

  std::string text;  // what was parsed: the key of caches and the words of messages

  // Reads the text form and checks every field. The error names the field and what was found.
  static ErrorOr<Problem> Parse(const std::string& text);

  bool has_epilogue() const { return out != OutType::kInt32; }
  int64_t x_elements() const { return n * h * w * c; }
  int64_t w_elements() const { return k * r * s * c; }
  int64_t out_elements() const { return n * p * q * k; }
  std::vector<int64_t> out_dims() const { return {n, p, q, k}; }
  size_t out_bytes() const { return out_elements() * SizeOf(out); }
};

// The buffers of a call; those that the problem doesn't have are null.
struct Operands {
  const void* x = nullptr;      // [N, H, W, C; int8]
  const void* w = nullptr;      // [K, R, S, C; int8]
  const void* m = nullptr;      // [K; float32]
  const void* b = nullptr;      // [K; float32]
  const void* r = nullptr;      // [N, P, Q, K; int8]
  const void* m_r = nullptr;    // [; float32]
  const void* lower = nullptr;  // [; float32]
  const void* upper = nullptr;  // [; float32]
  void* out = nullptr;          // [N, P, Q, K; out]
};

// A member of Operands that a call has, and the shape and size of its elements.
struct OperandSlot {
  const char* name;
  const void* Operands::* member;
  std::vector<int64_t> dims;
  size_t bytes_per_element;

  int64_t elements() const {
    return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  }
};

// The inputs of a call, in its order.
std::vector<OperandSlot> InputSlots(const Problem& problem);

}  // namespace jax_qconv
