// The engine "stem": kernels/stem.cu, specialised to a problem.
//
// stem:0:rows=4,cols=112,run=4  a block makes tiles of so many rows and columns of pixels, one
//                               after the other: convolutions of few channels to int8

#pragma once

#include "kernel_engine.h"

namespace jax_qconv {

const KernelSource& Stem();

// Whether it has plans for a problem.
bool IsStem(const Problem& problem);

}  // namespace jax_qconv
