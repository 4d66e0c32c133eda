// Stands in for the NVIDIA driver where there is none, so that cuDNN's libraries can be loaded.
// cuDNN calls only the two functions with a body when it plans for a described GPU; the others
// must exist and fail (100 is CUDA_ERROR_NO_DEVICE).

#define STUB(name) \
  int name(void) { return 100; }

int cuLibraryLoadData(void** library) {
  *library = (void*)0x1000;
  return 0;
}
int cuLibraryGetKernel(void** kernel) {
  *kernel = (void*)0x2000;
  return 0;
}

STUB(cuCtxGetCurrent)
STUB(cuCtxGetLimit)
STUB(cuCtxPopCurrent)
STUB(cuCtxPushCurrent)
STUB(cuDeviceGet)
STUB(cuDeviceGetCount)
STUB(cuDriverGetVersion)
STUB(cuGetErrorName)
STUB(cuGetErrorString)
STUB(cuKernelGetAttribute)
STUB(cuKernelGetFunction)
STUB(cuKernelSetAttribute)
STUB(cuLaunchCooperativeKernel)
STUB(cuLaunchKernel)
STUB(cuLaunchKernelEx)
STUB(cuLibraryLoadFromFile)
STUB(cuLibraryUnload)
STUB(cuLinkAddData)
STUB(cuLinkComplete)
STUB(cuLinkCreate)
STUB(cuLinkDestroy)
STUB(cuModuleGetFunction)
STUB(cuFuncSetAttribute)
STUB(cuModuleLoadData)
STUB(cuModuleUnload)
STUB(cuOccupancyMaxPotentialClusterSize)
STUB(cuStreamGetCtx)
STUB(cuTensorMapEncodeIm2col)
STUB(cuTensorMapEncodeTiled)
