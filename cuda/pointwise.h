// The engine "pointwise": kernels/pointwise.cu, specialised to a problem.
//
// pointwise:0:rows=128,cols=128,run=4  a block makes tiles of so many pixels and channels, one
//                                      after the other: 1x1 convolutions of few channels to int8

#pragma once

#include "kernel_engine.h"

namespace jax_qconv {

const KernelSource& Pointwise();

// Whether it has plans for a problem.
bool IsPointwise(const Problem& problem);

}  // namespace jax_qconv
