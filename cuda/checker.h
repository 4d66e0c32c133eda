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

// What verification found.
struct Verdict {
  enum Outcome {
    kExact,   // every element is right on every data set
    kWrong,   // some element isn't, or something else was written
    kNotRun,  // the candidate couldn't be launched, which says nothing of its results
  };
  Outcome outcome = kExact;
  std::string reason;  // unless exact
};

class Checker {
 public:
  // Allocates the buffers of a problem on the current device, outside JAX's memory pool.
  static ErrorOr<Checker> Create(const Problem& problem, const DeviceInfo& device);

  // Runs each candidate on data sets that are made to reveal mistakes, in memory whose margins it
  // must not touch:
  //   saturating  the whole int8 range, results inside and far outside of the output's range
  //   same sign   products of one sign, sums past 2^24 where the problem has that many taps, less
  //               what brings them back into the output's range: its last bits show whether sums
  //               were accumulated in float, and whether products are contracted with additions
  //   ties        small integers and factors of one half, so that rounding decides
  // A candidate that faults leaves the CUDA context of the process unusable: those that come from
  // cuDNN's own list are trusted not to. An Error means that verification itself failed.
  ErrorOr<std::vector<Verdict>> Verify(const std::vector<Launch>& candidates);

  // Time of one launch on the device, microseconds: the best of a few short runs.
  ErrorOr<double> Time(const Launch& launch);

  // Changes whenever verdicts of an earlier version may not be trusted any more.
  static std::string Version();

 private:
  struct DataSet;

  Checker(const Problem& problem, KernelModule kernels, Stream stream, Timer timer);
  Error Fill(const DataSet& data);
  Error ComputeExpected();
  ErrorOr<Verdict> RunAndCompare(const Launch& launch, const char* data_name);

  Problem problem_;
  KernelModule kernels_;
  Stream stream_;
  Timer timer_;
  std::vector<DeviceBuffer> inputs_;  // one per InputSlot
  DeviceBuffer out_, expected_, result_;
  Operands operands_;
};

}  // namespace jax_qconv
