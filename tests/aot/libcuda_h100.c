// Stands in for the NVIDIA driver with one H100, on which everything succeeds and nothing runs.
// Memory that is read back holds what checker.cc fills outputs with: no plan is ever exact.

#include <string.h>

int succeed(void) { return 0; }
#define SUCCEED(name) int name(void) __attribute__((alias("succeed")));

int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
int cuDeviceGetName(char* name, int size, int device) {
  (void)device;
  strncpy(name, "NVIDIA H100", size);
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  // 75 and 76 are the two halves of the compute capability, 38 is the size of the L2 cache.
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 38 ? 50 << 20 : 0;
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  (void)bytes;
  *address = 0x1000;
  return 0;
}
int cuMemcpyDtoHAsync_v2(void* host, unsigned long long device, size_t bytes, void* stream) {
  (void)device, (void)stream;
  memset(host, 0xa5, bytes);
  return 0;
}

SUCCEED(cuCtxPopCurrent_v2)
SUCCEED(cuCtxPushCurrent_v2)
SUCCEED(cuDeviceGet)
SUCCEED(cuDevicePrimaryCtxRetain)
SUCCEED(cuEventCreate)
SUCCEED(cuEventDestroy_v2)
SUCCEED(cuEventElapsedTime)
SUCCEED(cuEventRecord)
SUCCEED(cuGetErrorName)
SUCCEED(cuGetErrorString)
SUCCEED(cuInit)
SUCCEED(cuLaunchKernel)
SUCCEED(cuMemFree_v2)
SUCCEED(cuMemGetInfo_v2)
SUCCEED(cuMemcpyDtoDAsync_v2)
SUCCEED(cuMemcpyHtoDAsync_v2)
SUCCEED(cuMemsetD8Async)
SUCCEED(cuModuleGetFunction)
SUCCEED(cuFuncSetAttribute)
SUCCEED(cuModuleLoadData)
SUCCEED(cuModuleUnload)
SUCCEED(cuStreamCreate)
SUCCEED(cuStreamDestroy_v2)
SUCCEED(cuStreamSynchronize)
