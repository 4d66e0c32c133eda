// A problem's parameters as kernels that are specialised to it have them: as a constant.

#pragma once

#include <sstream>
#include <string>

#include "kernels/conv_params.h"

namespace jax_qconv {

// The parameters as an initialiser, every float exact.
inline std::string Literal(const ConvParams& t) {
  std::ostringstream out;
  const auto axes = [&](const int (&values)[3]) {
    out << "{" << values[0] << ", " << values[1] << ", " << values[2] << "}, ";
  };
  out << "{" << t.n << ", " << t.c << ", " << t.k << ", " << t.groups << ", ";
  axes(t.size);
  axes(t.kernel);
  axes(t.out_size);
  axes(t.stride);
  axes(t.pad);
  axes(t.dilation);
  out << t.out << ", " << t.activation << ", " << std::hexfloat << t.slope << "f, " << t.offset
      << ", " << t.residual << ", " << t.residual_zero_point << ", " << t.activation_first << ", "
      << t.requantize << "}";
  return out.str();
}

}  // namespace jax_qconv
