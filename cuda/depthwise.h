// The engine "depthwise": kernels/depthwise.cu, specialised to a problem.
//
// depthwise:0:rows=4,cols=4  a thread makes a tile of so many outputs of 4 channels: two axes, as
//                            many output as input channels
// depthwise:1                a thread makes one output: any depthwise problem

#pragma once

#include "kernel_engine.h"

namespace jax_qconv {

const KernelSource& Depthwise();

}  // namespace jax_qconv
