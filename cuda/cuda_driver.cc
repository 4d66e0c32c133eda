#include "cuda_driver.h"

#include <map>
#include <memory>
#include <mutex>

#include "dynamic_library.h"

namespace jax_qconv {
namespace {

ErrorOr<const CudaDriver*> LoadDriver() {
  auto library = DynamicLibrary::Open({"libcuda.so.1"});
  if (!library.has_value()) {
    return Unexpected(
        Error(ErrorCode::kFailedPrecondition,
              StrCat("the NVIDIA driver can't be loaded (", library.error().message(),
                     "); install it, or in a container start it with access to the GPU")));
  }
  auto driver = std::make_unique<CudaDriver>();
#define JQ_BIND(name, symbol) JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind(#symbol, &driver->name));
  JQ_CUDA_FUNCTIONS(JQ_BIND)
#undef JQ_BIND
  JQ_RETURN_UNEXPECTED_IF_ERROR(driver->Check(driver->Init(0), "starting the NVIDIA driver"));
  return driver.release();  // for the life of the process
}

// The driver that every object below was made with.
const CudaDriver& Loaded() { return **CudaDriver::Get(); }

}  // namespace

ErrorOr<const CudaDriver*> CudaDriver::Get() {
  static const auto* driver = new ErrorOr<const CudaDriver*>(LoadDriver());
  return *driver;
}

Error CudaDriver::Check(CUresult result, const char* what) const {
  if (result == CUDA_SUCCESS) return Error::Success();
  const char* name = nullptr;
  const char* text = nullptr;
  if (GetErrorName(result, &name) != CUDA_SUCCESS) name = "unknown error";
  if (GetErrorString(result, &text) != CUDA_SUCCESS) text = "no description";
  return Error(
      result == CUDA_ERROR_OUT_OF_MEMORY ? ErrorCode::kResourceExhausted : ErrorCode::kInternal,
      StrCat(what, " failed: ", name, " (", text, ")"));
}

ErrorOr<DeviceInfo> GetDeviceInfo(int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  CUdevice handle;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->DeviceGet(&handle, device), "finding the CUDA device"));
  char name[256] = {};
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->DeviceGetName(name, sizeof(name) - 1, handle), "naming the device"));
  const auto read = [&](CUdevice_attribute attribute, int& value) {
    return driver->Check(driver->DeviceGetAttribute(&value, attribute, handle),
                         "reading an attribute of the GPU");
  };
  int major = 0, minor = 0, l2_bytes = 0;
  JQ_RETURN_UNEXPECTED_IF_ERROR(read(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, major));
  JQ_RETURN_UNEXPECTED_IF_ERROR(read(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, minor));
  JQ_RETURN_UNEXPECTED_IF_ERROR(read(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, l2_bytes));
  return DeviceInfo{name, 10 * major + minor, l2_bytes};
}

std::vector<DeviceInfo> VisibleDevices() {
  const auto driver = CudaDriver::Get();
  int count = 0;
  if (!driver.has_value() || (*driver)->DeviceGetCount(&count) != CUDA_SUCCESS) return {};
  std::vector<DeviceInfo> devices;
  for (int device = 0; device < count; ++device) {
    if (auto info = GetDeviceInfo(device); info.has_value()) devices.push_back(*info);
  }
  return devices;
}

namespace {

// The primary context of a device, as JAX and the CUDA runtime use it. Retained for the life of the
// process: plans and handles belong to it.
ErrorOr<CUcontext> PrimaryContext(const CudaDriver& driver, int device) {
  static std::mutex mutex;
  static auto* contexts = new std::map<int, CUcontext>;
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto it = contexts->find(device); it != contexts->end()) return it->second;
  CUdevice handle;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver.Check(driver.DeviceGet(&handle, device), "finding the CUDA device"));
  CUcontext context;
  JQ_RETURN_UNEXPECTED_IF_ERROR(driver.Check(driver.DevicePrimaryCtxRetain(&context, handle),
                                             "retaining the device's context"));
  contexts->emplace(device, context);
  return context;
}

}  // namespace

ErrorOr<ScopedDevice> ScopedDevice::Enter(int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  JQ_ASSIGN_OR_UNEXPECTED(const CUcontext context, PrimaryContext(*driver, device));
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->CtxPushCurrent(context), "entering the context"));
  return ScopedDevice(driver);
}

ScopedDevice::ScopedDevice(ScopedDevice&& other) noexcept
    : driver_(std::exchange(other.driver_, nullptr)) {}

ScopedDevice::~ScopedDevice() {
  if (driver_ == nullptr) return;
  CUcontext context;
  driver_->CtxPopCurrent(&context);
}

ErrorOr<DeviceBuffer> DeviceBuffer::Allocate(size_t bytes) {
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  DeviceBuffer buffer;
  const CUresult result = driver->MemAlloc(&buffer.address_, bytes);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    size_t free = 0, total = 0;
    driver->MemGetInfo(&free, &total);
    return Unexpected(
        Error(ErrorCode::kResourceExhausted,
              StrCat("checking a plan needs ", bytes,
                     " more bytes of GPU memory outside JAX's pool, where ", free,
                     " are free; leave it more with XLA_PYTHON_CLIENT_MEM_FRACTION=0.7 (the "
                     "default is 0.75) or XLA_PYTHON_CLIENT_PREALLOCATE=false")));
  }
  JQ_RETURN_UNEXPECTED_IF_ERROR(driver->Check(result, "allocating GPU memory"));
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (address_ != 0) Loaded().MemFree(address_);
}

ErrorOr<Stream> Stream::Create() {
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  CUstream stream;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->StreamCreate(&stream, CU_STREAM_NON_BLOCKING), "making a stream"));
  return Stream(stream);
}

Stream::~Stream() {
  if (stream_ != nullptr) Loaded().StreamDestroy(stream_);
}

Error Stream::Synchronize() const {
  return Loaded().Check(Loaded().StreamSynchronize(stream_), "waiting for the GPU");
}

ErrorOr<Timer> Timer::Create() {
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  Timer timer;
  for (CUevent* event : {&timer.start_, &timer.stop_}) {
    JQ_RETURN_UNEXPECTED_IF_ERROR(
        driver->Check(driver->EventCreate(event, CU_EVENT_DEFAULT), "making an event"));
  }
  return timer;
}

Timer::~Timer() {
  for (CUevent event : {start_, stop_}) {
    if (event != nullptr) Loaded().EventDestroy(event);
  }
}

Error Timer::Start(const Stream& stream) const {
  return Loaded().Check(Loaded().EventRecord(start_, stream.get()), "recording an event");
}

ErrorOr<double> Timer::StopMicroseconds(const Stream& stream) const {
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      Loaded().Check(Loaded().EventRecord(stop_, stream.get()), "recording an event"));
  JQ_RETURN_UNEXPECTED_IF_ERROR(stream.Synchronize());
  float milliseconds = 0;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      Loaded().Check(Loaded().EventElapsedTime(&milliseconds, start_, stop_), "reading the time"));
  return 1e3 * milliseconds;
}

}  // namespace jax_qconv
