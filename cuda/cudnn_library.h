// libcudnn, found at run time, and its handles.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_driver.h"
#include "status.h"

typedef struct cudnnContext* cudnnHandle_t;  // as in cudnn.h, which who includes this can spare

namespace jax_qconv {

// Opens libcudnn and the CUDA runtime it works with, once per process. Must succeed before
// anything of cudnn-frontend is called: its loader throws where a library or symbol is missing.
// Returns the version as cuDNN writes it: 91900 for 9.19.0.
ErrorOr<int64_t> OpenCudnn();

// The CUDA runtime that was opened, by the name it was found under; empty if none was.
std::string CudaRuntimeName();

// "9.19.0" for 91900.
std::string CudnnVersionText(int64_t version);

// cuDNN handles of one device. A handle serves one thread at a time; making one takes long and
// allocates, so it happens while plans are built, never while convolutions are launched.
class HandlePool {
 public:
  // The pool of a device; lives as long as the process.
  static HandlePool& Of(int device);

  struct Entry {
    cudnnHandle_t handle;
    CUstream stream;  // that the handle launches on
  };

  // A borrowed handle goes back to its pool at the end of its life.
  class Borrowed {
   public:
    Borrowed(Borrowed&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)), entry_(other.entry_) {}
    Borrowed& operator=(Borrowed&&) = delete;
    ~Borrowed();
    cudnnHandle_t get() const { return entry_.handle; }

   private:
    friend class HandlePool;
    Borrowed(HandlePool* pool, Entry entry) : pool_(pool), entry_(entry) {}

    HandlePool* pool_;
    Entry entry_;
  };

  // A handle that launches on `stream`. Waits while all are in use, which lasts microseconds;
  // an error if none was ever borrowed for building.
  ErrorOr<Borrowed> Borrow(CUstream stream);

  // A handle to build plans with, for as long as that takes; another one stays free for threads
  // that launch meanwhile. Makes handles where there are too few: call with the device's context
  // current, and not while a graph is captured.
  ErrorOr<Borrowed> BorrowForBuilding();

 private:
  Error TopUp();  // makes a handle if none is free
  void Return(Entry entry);

  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<Entry> free_;
  int used_ = 0;
};

}  // namespace jax_qconv
