// A convolution as its kernels see it. Shared by host code and by kernels compiled at run time,
// which have no standard headers.

#pragma once

namespace jax_qconv {

// Spatial axes are depth, height, width; a 2-D convolution has a depth of one.
struct ConvParams {
  int n, c, k, groups;  // channels of input and output
  int size[3];          // of the input, NDHWC
  int kernel[3];        // of the weights, K, kernel, C / groups
  int out_size[3];
  int stride[3], pad[3], dilation[3];  // pad: before the first element
  int out;                             // OutType of problem.h
  int activation;                      // Activation of problem.h
  float slope;                         // of leaky relu
  int offset;                          // Offset of problem.h
  int residual, residual_zero_point;   // whether there are r and z_r
  int activation_first;                // whether the residual is added after the activation
  int requantize;                      // whether m_y and b_y follow
};

// The buffers of a call; those that it doesn't have are null.
struct Operands {
  const void* x = nullptr;       // [N, H, W, C; int8]
  const void* w = nullptr;       // [K, R, S, C / groups; int8]
  const void* z = nullptr;       // [K or P, Q, K; int32]
  const void* m = nullptr;       // [K; float32]
  const void* b = nullptr;       // [K; float32]
  const void* r = nullptr;       // [N, P, Q, K; int8]
  const void* m_r = nullptr;     // [; float32]
  const void* z_r = nullptr;     // [; float32]
  const void* lower = nullptr;   // [; float32]
  const void* upper = nullptr;   // [; float32]
  const void* slopes = nullptr;  // [K; float32]
  const void* m_y = nullptr;     // [; float32]
  const void* b_y = nullptr;     // [; float32]
  void* out = nullptr;           // [N, P, Q, K; out]
};

}  // namespace jax_qconv
