// Names of plans: one engine with one configuration, such as "cudnn:4:cfg=26".

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "status.h"

namespace jax_qconv {

// engine [: index [: knob=value {, knob=value}]]
//
// Engines: "cudnn" is cuDNN's graph of the convolution and its epilogue; "cudnn_bare" is its
// convolution alone, for int32 outputs; others are own kernels. The index is a kernel family,
// by cuDNN's own number or that of the engine's header. "auto", and
// "cudnn" without one, are deferred: the fastest verified one of what all the problem's engines
// suggest, or cuDNN.
struct PlanName {
  std::string engine;
  std::optional<int64_t> index;
  std::map<int64_t, int64_t> knobs;  // by number, cuDNN's own where they are its, so sorted

  static ErrorOr<PlanName> Parse(const std::string& text);
  std::string ToString() const;
  bool deferred() const { return !index.has_value(); }
  bool operator==(const PlanName&) const = default;
};

}  // namespace jax_qconv
