// Verification of plans: all elements against the exact convolution of kernels/check_conv.cu, on
// the device, on data made to reveal what random data hides.

#pragma once

#include <functional>
#include <string>
#include <utility>
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

  // Microseconds of a launch, the mean of so many in a row. They take turns on sets of buffers that
  // are together larger than the L2 cache, so that none finds its data there.
  ErrorOr<double> Time(const Launch& launch, int launches);

  // The file of its kernels, and their source.
  static std::pair<std::string, std::string> KernelFile();

  // Changes whenever verdicts of an earlier version may not be trusted any more.
  static std::string Version();

 private:
  struct DataSet;

  Checker(const Problem& problem, int64_t l2_bytes, KernelModule kernels, Stream stream,
          Timer timer);
  std::vector<DataSet> DataSets() const;
  // Of an operand by its name, for channel `k`.
  static double Constant(const DataSet& data, const std::string& name, int64_t k);
  Error Fill(const DataSet& data);
  Error MakeSets();
  Error ComputeExpected();
  ErrorOr<Verdict> RunAndCompare(const Launch& launch, const char* data_name);

  Problem problem_;
  int64_t l2_bytes_;
  KernelModule kernels_;
  Stream stream_;
  Timer timer_;
  std::vector<DeviceBuffer> inputs_;  // one per InputSlot
  DeviceBuffer out_, expected_, result_;
  Operands operands_;
  DeviceBuffer arena_;          // of the sets that are timed
  std::vector<Operands> sets_;  // all that a call reads and writes, several times
  size_t next_set_ = 0;
};

}  // namespace jax_qconv
