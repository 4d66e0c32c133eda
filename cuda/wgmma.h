// The engine "wgmma": kernels/wgmma.cu, specialised to a problem. For sm_90 only.
//
// wgmma:0:rows=256,cols=128,run=6,product=128  a block makes tiles of so many pixels and channels,
//                                              one after the other, in products of so many pixels:
//                                              convolutions of few terms to int8

#pragma once

#include "kernel_engine.h"

namespace jax_qconv {

const KernelSource& Wgmma();

// Whether it is for a problem.
bool IsWgmma(const Problem& problem);

}  // namespace jax_qconv
