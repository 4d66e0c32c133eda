// The CUDA driver, found at run time, and RAII for what it gives out.

#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "status.h"

namespace jax_qconv {

// The driver's functions that are used here, under their names without the cu prefix.
#define JQ_CUDA_FUNCTIONS(X)                          \
  X(Init, cuInit)                                     \
  X(DriverGetVersion, cuDriverGetVersion)             \
  X(GetErrorName, cuGetErrorName)                     \
  X(GetErrorString, cuGetErrorString)                 \
  X(DeviceGetCount, cuDeviceGetCount)                 \
  X(DeviceGet, cuDeviceGet)                           \
  X(DeviceGetName, cuDeviceGetName)                   \
  X(DeviceGetAttribute, cuDeviceGetAttribute)         \
  X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain) \
  X(CtxPushCurrent, cuCtxPushCurrent_v2)              \
  X(CtxPopCurrent, cuCtxPopCurrent_v2)                \
  X(MemGetInfo, cuMemGetInfo_v2)                      \
  X(MemAlloc, cuMemAlloc_v2)                          \
  X(MemFree, cuMemFree_v2)                            \
  X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2)            \
  X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2)            \
  X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2)            \
  X(MemsetD8Async, cuMemsetD8Async)                   \
  X(StreamCreate, cuStreamCreate)                     \
  X(StreamDestroy, cuStreamDestroy_v2)                \
  X(StreamSynchronize, cuStreamSynchronize)           \
  X(EventCreate, cuEventCreate)                       \
  X(EventDestroy, cuEventDestroy_v2)                  \
  X(EventRecord, cuEventRecord)                       \
  X(EventElapsedTime, cuEventElapsedTime)             \
  X(ModuleLoadData, cuModuleLoadData)                 \
  X(ModuleUnload, cuModuleUnload)                     \
  X(ModuleGetFunction, cuModuleGetFunction)           \
  X(FuncSetAttribute, cuFuncSetAttribute)             \
  X(LaunchKernel, cuLaunchKernel)

struct CudaDriver {
#define JQ_DECLARE(name, symbol) decltype(&::symbol) name = nullptr;
  JQ_CUDA_FUNCTIONS(JQ_DECLARE)
#undef JQ_DECLARE

  // Opened and initialised once per process; later calls return the same result.
  static ErrorOr<const CudaDriver*> Get();

  // An error that says what failed and what the driver says of it.
  Error Check(CUresult result, const char* what) const;
};

struct DeviceInfo {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 90 for sm_90
  int64_t l2_bytes = 0;        // of its last-level cache
};
ErrorOr<DeviceInfo> GetDeviceInfo(int device);

// What GPUs the process sees, by device; none where the driver can't be used.
std::vector<DeviceInfo> VisibleDevices();

// Makes the primary context of a device current in this thread, as JAX and the CUDA runtime use
// it, for the lifetime of the object.
class ScopedDevice {
 public:
  static ErrorOr<ScopedDevice> Enter(int device);
  ScopedDevice(ScopedDevice&& other) noexcept;
  ScopedDevice& operator=(ScopedDevice&&) = delete;
  ~ScopedDevice();

 private:
  explicit ScopedDevice(const CudaDriver* driver) : driver_(driver) {}

  const CudaDriver* driver_;
};

// Device memory of the current context.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static ErrorOr<DeviceBuffer> Allocate(size_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer();

  CUdeviceptr address() const { return address_; }
  void* data() const { return reinterpret_cast<void*>(address_); }
  size_t bytes() const { return bytes_; }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
  }

  CUdeviceptr address_ = 0;
  size_t bytes_ = 0;
};

// A stream of the current context, independent of the default one.
class Stream {
 public:
  static ErrorOr<Stream> Create();
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&&) = delete;
  ~Stream();

  CUstream get() const { return stream_; }
  Error Synchronize() const;

 private:
  explicit Stream(CUstream stream) : stream_(stream) {}

  CUstream stream_;
};

// A pair of events around work on a stream.
class Timer {
 public:
  static ErrorOr<Timer> Create();
  Timer(Timer&& other) noexcept
      : start_(std::exchange(other.start_, nullptr)), stop_(std::exchange(other.stop_, nullptr)) {}
  Timer& operator=(Timer&&) = delete;
  ~Timer();

  Error Start(const Stream& stream) const;
  // Waits for the work and returns the time since Start.
  ErrorOr<double> StopMicroseconds(const Stream& stream) const;

 private:
  Timer() = default;

  CUevent start_ = nullptr;
  CUevent stop_ = nullptr;
};

}  // namespace jax_qconv
