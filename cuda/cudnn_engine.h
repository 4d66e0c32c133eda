// The engine "cudnn", and "cudnn_bare": plans of cuDNN's graphs.

#pragma once

#include "engine.h"

namespace jax_qconv {

const Engine& CudnnEngine();

}  // namespace jax_qconv
