#include "cudnn_graph.h"

#include <cudnn_frontend.h>

#include <algorithm>
#include <cstdlib>
#include <unordered_map>
#include <vector>

namespace jax_qconv {
namespace {

namespace fe = ::cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// cudnn-frontend reports errors as values, but its loader throws where a symbol is missing, and
// containers may throw too: nothing may leave this file as an exception.
template <typename Body>
Error Guard(const char* what, const Problem& problem, Body&& body) {
  std::string message;
  try {
    fe::error_t status = body();
    if (status.is_good()) return Error::Success();
    message = status.get_message();
  } catch (const std::exception& exception) {
    message = exception.what();
  } catch (...) {
    message = "unknown exception";
  }
  return Error::Internal(StrCat("cuDNN: ", what, " failed for '", problem.text, "': ", message));
}

// Has cudnn-frontend open the CUDA runtime that was opened here. It looks for one by itself, and
// where both 12 and 13 are installed may take the one that JAX doesn't use; an environment variable
// is its way to be told. A value that the user set stays.
void OpenRuntimeOfFrontend() {
  constexpr char kVariable[] = "CUDNN_FRONTEND_CUDART_LIB_NAME";
  const bool ours = std::getenv(kVariable) == nullptr;
  if (ours) setenv(kVariable, CudaRuntimeName().c_str(), 1);
  fe::detail::get_cuda_symbol(fe::detail::CudaLibrary::CUDART, "cudaGetDevice");
  if (ours) unsetenv(kVariable);  // processes started from this one may have another runtime
}

void OpenRuntimeOfFrontendOnce() {
  static const bool opened = (OpenRuntimeOfFrontend(), true);
  static_cast<void>(opened);
}

fe::DataType_t DataType(OutType type) {
  switch (type) {
    case OutType::kInt8:
      return fe::DataType_t::INT8;
    case OutType::kInt32:
      return fe::DataType_t::INT32;
    case OutType::kFloat32:
      return fe::DataType_t::FLOAT;
    case OutType::kBfloat16:
      return fe::DataType_t::BFLOAT16;
    case OutType::kFloat16:
      return fe::DataType_t::HALF;
  }
  return fe::DataType_t::NOT_SET;
}

// Adds the nodes of a problem to a graph.
class Nodes {
 public:
  Nodes(fe::graph::Graph& graph, const Problem& problem) : graph_(graph), problem_(problem) {}

  void Add(bool bare) {
    const auto& p = problem_;
    Tensor x = Input("x", p.x_dims(), fe::DataType_t::INT8);
    // Fewer channels than x has are those of a group.
    Tensor w = Input("w", p.w_dims(), fe::DataType_t::INT8);
    Tensor y = graph_.conv_fprop(x, w,
                                 fe::graph::Conv_fprop_attributes()
                                     .set_pre_padding(Spatial(p.pad_before))
                                     .set_post_padding(Spatial(p.pad_after))
                                     .set_stride(Spatial(p.strides))
                                     .set_dilation(Spatial(p.dilation))
                                     .set_compute_data_type(fe::DataType_t::INT32));
    const bool offset = p.offset != Offset::kNone;
    if (offset) {
      y->set_data_type(fe::DataType_t::INT32);
      y = graph_.pointwise(
          y, PerChannel("z", fe::DataType_t::INT32),
          Mode(fe::PointwiseMode_t::ADD).set_compute_data_type(fe::DataType_t::INT32));
    }
    if (p.has_epilogue()) {
      // A float result of the convolution keeps the pattern on cuDNN's general fusion engines; with
      // an int32 one, a residual is matched to an older pattern without Hopper kernels.
      y->set_data_type(fe::DataType_t::FLOAT);
      y = AddEpilogue(y);
    } else if (!bare) {
      // The lone convolution has mostly wrong plans; followed by anything it has right ones.
      y->set_data_type(fe::DataType_t::INT32);
      y = graph_.pointwise(
          y, Mode(fe::PointwiseMode_t::IDENTITY).set_compute_data_type(fe::DataType_t::INT32));
    }
    y->set_output(true).set_data_type(DataType(p.out)).set_uid(next_uid_);
  }

 private:
  using Pointwise = fe::PointwiseMode_t;

  // act(fma(r - z_r, m_r, fma(acc, m, b))): cuDNN contracts each multiplication with its addition.
  Tensor AddEpilogue(Tensor y) {
    const auto& p = problem_;
    y = graph_.pointwise(y, PerChannel("m"), Mode(Pointwise::MUL));
    y = graph_.pointwise(y, PerChannel("b"), Mode(Pointwise::ADD));
    // Its tensors come before the activation's in the order of operands.
    Tensor r = p.residual ? Residual() : nullptr;
    const auto add_residual = [&] { y = graph_.pointwise(y, r, Mode(Pointwise::ADD)); };
    if (p.residual && !p.activation_first) add_residual();
    y = Activate(y);
    if (p.residual && p.activation_first) add_residual();
    if (p.requantize) {
      y = graph_.pointwise(y, Scalar("m_y"), Mode(Pointwise::MUL));
      y = graph_.pointwise(y, Scalar("b_y"), Mode(Pointwise::ADD));
    }
    return y;
  }

  // (r - z_r) * m_r
  Tensor Residual() {
    Tensor r = Input("r", problem_.out_dims(), fe::DataType_t::INT8);
    Tensor m_r = Scalar("m_r");
    if (problem_.residual_zero_point) {
      r = graph_.pointwise(r, Scalar("z_r"), Mode(Pointwise::SUB));
    }
    return graph_.pointwise(r, m_r, Mode(Pointwise::MUL));
  }

  Tensor Activate(Tensor y) {
    const auto& p = problem_;
    switch (p.activation) {
      case Activation::kNone:
        return y;
      case Activation::kRelu:
        return graph_.pointwise(y, Mode(Pointwise::RELU_FWD));
      case Activation::kLeakyRelu:
        return graph_.pointwise(y, Mode(Pointwise::RELU_FWD).set_relu_lower_clip_slope(p.slope));
      case Activation::kClip:
        // Bounds are data, not attributes: they hold 1 / out_scale, which may change.
        y = graph_.pointwise(y, Scalar("lower"), Mode(Pointwise::MAX));
        return graph_.pointwise(y, Scalar("upper"), Mode(Pointwise::MIN));
      case Activation::kPrelu: {
        Tensor scaled = graph_.pointwise(y, PerChannel("slopes"), Mode(Pointwise::MUL));
        Tensor positive = graph_.pointwise(y, Constant(0), Mode(Pointwise::CMP_GT));
        positive->set_data_type(fe::DataType_t::BOOLEAN);
        return graph_.pointwise(y, scaled, positive, Mode(Pointwise::BINARY_SELECT));
      }
      case Activation::kHardSigmoid:
        return HardSigmoid(y);
      case Activation::kHardSwish:
        y = graph_.pointwise(y, HardSigmoid(y), Mode(Pointwise::MUL));
        // Else a residual that comes after may be contracted with this product, not with its own.
        return p.activation_first ? graph_.pointwise(y, Constant(0), Mode(Pointwise::ADD)) : y;
      case Activation::kSigmoid:
        return graph_.pointwise(y, Mode(Pointwise::SIGMOID_FWD));
      case Activation::kTanh:
        return graph_.pointwise(y, Mode(Pointwise::TANH_FWD));
      case Activation::kSilu:
        return graph_.pointwise(y, Mode(Pointwise::SWISH_FWD).set_swish_beta(1));
      case Activation::kGelu:
        return graph_.pointwise(y, Mode(Pointwise::GELU_FWD));
      case Activation::kGeluTanh:
        return graph_.pointwise(y, Mode(Pointwise::GELU_APPROX_TANH_FWD));
    }
    return y;
  }

  // min(max(fma(y, 1 / 6, 0.5), 0), 1)
  Tensor HardSigmoid(Tensor y) {
    y = graph_.pointwise(y, Constant(1.0f / 6), Mode(Pointwise::MUL));
    y = graph_.pointwise(y, Constant(0.5f), Mode(Pointwise::ADD));
    y = graph_.pointwise(y, Constant(0), Mode(Pointwise::MAX));
    return graph_.pointwise(y, Constant(1), Mode(Pointwise::MIN));
  }

  // As many spatial axes as the problem's text has.
  std::vector<int64_t> Spatial(const Axes& axes) const {
    return std::vector<int64_t>(axes.end() - problem_.rank, axes.end());
  }

  // From channels last, `dims`, to how cuDNN writes shapes whatever the layout: N, C, H, W. The
  // strides tell the layout.
  Tensor Input(const char* name, std::vector<int64_t> dims, fe::DataType_t type) {
    std::vector<int64_t> strides(dims.size());
    int64_t stride = 1;
    for (size_t axis = dims.size(); axis-- > 0; stride *= dims[axis]) strides[axis] = stride;
    for (auto* values : {&dims, &strides}) {
      std::rotate(values->begin() + 1, values->end() - 1, values->end());
    }
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(next_uid_++)
                             .set_dim(std::move(dims))
                             .set_stride(std::move(strides))
                             .set_data_type(type));
  }
  Tensor PerChannel(const char* name, fe::DataType_t type = fe::DataType_t::FLOAT) {
    std::vector<int64_t> dims(problem_.rank + 2, 1);
    dims.back() = problem_.k;
    return Input(name, std::move(dims), type);
  }
  Tensor Scalar(const char* name) {
    return Input(name, std::vector<int64_t>(problem_.rank + 2, 1), fe::DataType_t::FLOAT);
  }
  Tensor Constant(float value) { return graph_.tensor(value); }

  static fe::graph::Pointwise_attributes Mode(fe::PointwiseMode_t mode) {
    return fe::graph::Pointwise_attributes().set_mode(mode);
  }

  fe::graph::Graph& graph_;
  const Problem& problem_;
  int64_t next_uid_ = 1;  // in the order of InputSlots, the output last: Execute relies on it
};

}  // namespace

struct CudnnGraph::Impl {
  Problem problem;
  std::string engine;
  std::vector<OperandSlot> slots;
  fe::graph::Graph graph;
};

CudnnGraph::CudnnGraph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudnnGraph::~CudnnGraph() = default;

namespace {

// What Create and CreateWithoutDevice share; `prepare` makes the graph's operations for a device.
template <typename Impl, typename Prepare>
ErrorOr<std::unique_ptr<Impl>> MakeImpl(const Problem& problem, const std::string& engine,
                                        Prepare&& prepare) {
  JQ_RETURN_UNEXPECTED_IF_ERROR(StatusOf(OpenCudnn()));
  const bool bare = engine == "cudnn_bare";
  if (bare && problem.has_epilogue()) {
    return Unexpected(Error::InvalidArgument(
        StrCat("engine 'cudnn_bare' has no epilogue, but '", problem.text, "' asks for one")));
  }
  if (problem.offset == Offset::kMap) {
    // It has plans for one, but they are wrong, or fault, for all images after the first.
    return Unexpected(Error::InvalidArgument(StrCat("cuDNN can't add the map that '", problem.text,
                                                    "' asks for; fill the border of x")));
  }
  auto impl = std::unique_ptr<Impl>(new Impl{problem, engine, InputSlots(problem), {}});
  JQ_RETURN_UNEXPECTED_IF_ERROR(Guard("making the graph", problem, [&]() -> fe::error_t {
    OpenRuntimeOfFrontendOnce();
    impl->graph.set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    Nodes(impl->graph, impl->problem).Add(bare);
    return prepare(impl->graph);
  }));
  return impl;
}

}  // namespace

ErrorOr<std::unique_ptr<CudnnGraph>> CudnnGraph::Create(const Problem& problem,
                                                        const std::string& engine,
                                                        cudnnHandle_t handle) {
  JQ_ASSIGN_OR_UNEXPECTED(
      auto impl, MakeImpl<Impl>(problem, engine, [handle](fe::graph::Graph& graph) -> fe::error_t {
        if (auto status = graph.validate(); status.is_bad()) return status;
        return graph.build_operation_graph(handle);
      }));
  return std::unique_ptr<CudnnGraph>(new CudnnGraph(std::move(impl)));
}

ErrorOr<std::unique_ptr<CudnnGraph>> CudnnGraph::CreateWithoutDevice(
    const Problem& problem, const std::string& engine, const std::string& device_properties) {
  JQ_ASSIGN_OR_UNEXPECTED(
      auto impl, MakeImpl<Impl>(problem, engine, [&](fe::graph::Graph& graph) -> fe::error_t {
        auto properties = std::make_shared<fe::DeviceProperties>();
        const std::vector<uint8_t> bytes(device_properties.begin(), device_properties.end());
        if (auto status = properties->deserialize(bytes); status.is_bad()) return status;
        graph.set_device_properties(properties);
        // cuDNN writes 900 for sm_90.
        const int version = nlohmann::json::parse(device_properties).at("deviceVer");
        graph.set_sm_version(version / 10);
        if (auto status = graph.validate(); status.is_bad()) return status;
        return graph.build_operation_graph();
      }));
  return std::unique_ptr<CudnnGraph>(new CudnnGraph(std::move(impl)));
}

ErrorOr<std::vector<PlanName>> CudnnGraph::Suggest() {
  std::vector<PlanName> suggestions;
  auto& graph = impl_->graph;
  JQ_RETURN_UNEXPECTED_IF_ERROR(Guard("asking for plans", impl_->problem, [&]() -> fe::error_t {
    auto status = graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
    for (int64_t i = 0; status.is_good() && i < graph.get_execution_plan_count(); ++i) {
      int64_t index = 0;
      std::unordered_map<fe::KnobType_t, int64_t> knobs;
      status = graph.get_engine_and_knobs_at_index(i, index, knobs);
      if (status.is_bad()) break;
      PlanName plan{impl_->engine, index, {}};
      for (const auto& [knob, value] : knobs) {
        // A knob that is newer than these headers is left out: the plan gets its default.
        cudnnBackendKnobType_t number;
        if (fe::convert_to_backend_knob_type(knob, number) == CUDNN_STATUS_SUCCESS) {
          plan.knobs[number] = value;
        }
      }
      suggestions.push_back(std::move(plan));
    }
    return status;
  }));
  return suggestions;
}

ErrorOr<std::vector<PlanName>> CudnnGraph::Configurations(int64_t index) {
  std::vector<PlanName> configurations;
  const std::string what = StrCat("asking for the knobs of engine ", index);
  JQ_RETURN_UNEXPECTED_IF_ERROR(Guard(what.c_str(), impl_->problem, [&]() -> fe::error_t {
    std::vector<fe::Knob> knobs;
    auto status = impl_->graph.get_knobs_for_engine(index, knobs);
    if (status.is_bad()) return status;
    for (const fe::Knob& knob : knobs) {
      if (knob.type != fe::KnobType_t::KERNEL_CFG) continue;
      const int64_t step = std::max<int64_t>(knob.stride, 1);
      for (int64_t value = knob.minValue; value <= knob.maxValue; value += step) {
        configurations.push_back({impl_->engine, index, {{CUDNN_KNOB_TYPE_KERNEL_CFG, value}}});
      }
    }
    return status;
  }));
  if (configurations.empty()) configurations.push_back({impl_->engine, index, {}});
  return configurations;
}

Error CudnnGraph::Build(const PlanName& plan) {
  auto& graph = impl_->graph;
  const std::string what = StrCat("building plan '", plan.ToString(), "'");
  int64_t workspace = 0;
  JQ_RETURN_IF_ERROR(Guard(what.c_str(), impl_->problem, [&]() -> fe::error_t {
    std::unordered_map<fe::KnobType_t, int64_t> knobs;
    for (const auto& [number, value] : plan.knobs) {
      knobs[fe::convert_from_backend_knob_type(static_cast<cudnnBackendKnobType_t>(number))] =
          value;
    }
    if (auto status = graph.create_execution_plan(*plan.index, knobs); status.is_bad()) {
      return status;
    }
    if (auto status = graph.check_support(); status.is_bad()) return status;
    if (auto status = graph.build_plans(); status.is_bad()) return status;
    return graph.get_workspace_size(workspace);
  }));
  if (workspace == 0) return Error::Success();
  return Error(ErrorCode::kUnimplemented,
               StrCat("plan '", plan.ToString(), "' needs ", workspace, " bytes of workspace for '",
                      impl_->problem.text, "'; only plans without workspace are supported"));
}

ErrorOr<std::string> CudnnGraph::Serialize() const {
  std::vector<uint8_t> bytes;
  JQ_RETURN_UNEXPECTED_IF_ERROR(Guard("serialising the plan", impl_->problem, [&]() -> fe::error_t {
    return impl_->graph.serialize(bytes, /*serialize_structure=*/false);
  }));
  return std::string(bytes.begin(), bytes.end());
}

ErrorOr<std::unique_ptr<CudnnGraph>> CudnnGraph::Load(const Problem& problem,
                                                      const std::string& serialized,
                                                      cudnnHandle_t handle) {
  JQ_RETURN_UNEXPECTED_IF_ERROR(StatusOf(OpenCudnn()));
  auto impl = std::unique_ptr<Impl>(new Impl{problem, "", InputSlots(problem), {}});
  JQ_RETURN_UNEXPECTED_IF_ERROR(Guard("loading a plan", problem, [&]() -> fe::error_t {
    OpenRuntimeOfFrontendOnce();
    const std::vector<uint8_t> bytes(serialized.begin(), serialized.end());
    // Its warm-up would allocate, and launch what has not been verified.
    return impl->graph.deserialize(handle, bytes, /*enforce_precompiled=*/true,
                                   /*run_warmup=*/false);
  }));
  return std::unique_ptr<CudnnGraph>(new CudnnGraph(std::move(impl)));
}

Error CudnnGraph::Execute(cudnnHandle_t handle, const Operands& operands) const {
  std::array<void*, 16> pointers;
  int count = 0;
  for (const OperandSlot& slot : impl_->slots) {
    pointers[count++] = const_cast<void*>(operands.*slot.member);
  }
  pointers[count++] = operands.out;
  return Guard("launching", impl_->problem, [&]() -> fe::error_t {
    return impl_->graph.execute(handle, pointers.data(), count, nullptr);
  });
}

std::array<int, 3> CudnnHeaderVersion() { return {CUDNN_MAJOR, CUDNN_MINOR, CUDNN_PATCHLEVEL}; }

std::array<int, 3> CudnnFrontendVersion() {
  return {CUDNN_FRONTEND_MAJOR_VERSION, CUDNN_FRONTEND_MINOR_VERSION, CUDNN_FRONTEND_PATCH_VERSION};
}

}  // namespace jax_qconv
