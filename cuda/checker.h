// Verification of plans: all elements against the exact convolution of kernels/check_conv.cu, on
// the device, on data made to reveal what random data hides.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "kernel.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// Launches one candidate on a stream.
using Launch = std::function<Error(const Operands&, CUstream)>;

class Checker {
 public:
  // Allocates the buffers of a problem on the current device, outside JAX's memory pool.
  static ErrorOr<Checker> Create(const Problem& problem, const DeviceInfo& device);

  // For each candidate, an empty text if every element is right on every data set, else what is
  // wrong with it. The data sets:
  //   saturating  the whole int8 range, results inside and far outside of the output's range
  //   same sign   products of one sign, sums past 2^24 where the problem has that many taps, and
  //               constants that show their last bits: float accumulation can't hide
  //   ties        small integers and factors of one half, so that rounding decides
  // An Error means that verification itself failed.
  ErrorOr<std::vector<std::string>> Verify(const std::vector<Launch>& candidates);

  // Time of one launch, microseconds: the best of a few short runs.
  ErrorOr<double> Time(const Launch& launch);

  // Changes whenever verdicts of an earlier version may not be trusted any more.
  static std::string Version();

 private:
  struct DataSet;

  Checker(const Problem& problem, KernelModule kernels, Stream stream, Timer timer);
  Error Fill(const DataSet& data);
  Error ComputeExpected();
  ErrorOr<std::string> RunAndCompare(const Launch& launch, const char* data_name);

  Problem problem_;
  KernelModule kernels_;
  Stream stream_;
  Timer timer_;
  std::vector<DeviceBuffer> inputs_;  // one per InputSlot
  DeviceBuffer out_, expected_, result_;
  Operands operands_;
};

}  // namespace jax_qconv
