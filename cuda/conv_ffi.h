// The XLA FFI custom call.

#pragma once

#include "xla/ffi/api/ffi.h"

namespace jax_qconv {

// Version of the call's attributes, as in jax_qconv/_native.py.
inline constexpr int64_t kConvSchema = 1;

// Lives as long as the compiled program and is shared by all its devices and threads.
struct ConvState;

xla::ffi::TypeId* ConvStateTypeId();
const xla::ffi::TypeInfo* ConvStateTypeInfo();

extern "C" {
// Once per compiled program: decodes and validates the attributes. Sees no device.
XLA_FFI_Error* JaxQconvInstantiate(XLA_FFI_CallFrame* call_frame);
// Before every run: makes sure that the plan exists on the device; a look-up when it does.
XLA_FFI_Error* JaxQconvInitialize(XLA_FFI_CallFrame* call_frame);
// Every run, or while a CUDA graph is captured: launches, and nothing else.
XLA_FFI_Error* JaxQconvExecute(XLA_FFI_CallFrame* call_frame);
}

}  // namespace jax_qconv
