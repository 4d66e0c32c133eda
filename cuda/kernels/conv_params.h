// A convolution as its kernels see it. Shared by host code and by kernels compiled at run time,
// which have no standard headers.

#pragma once

namespace jax_qconv {

struct ConvParams {
  int n, h, w, c;  // input, NHWC
  int k, r, s;     // weights, KRSC
  int p, q;        // output height, width
  int stride_h, stride_w;
  int pad_top, pad_left;
  int dilation_h, dilation_w;
  int out;         // OutType of problem.h
  int activation;  // Activation of problem.h
  float slope;     // of leaky relu
};

}  // namespace jax_qconv
