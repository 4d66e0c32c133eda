#include "conv_ffi.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "plan_name.h"
#include "problem.h"
#include "search.h"
#include "status.h"

namespace jax_qconv {

struct ConvState {
  static ffi::TypeId id;
  static ffi::TypeInfo info;

  Problem problem;
  std::vector<OperandSlot> slots;  // of the problem
  PlanName plan_name;
  bool pinned = false;

  std::mutex mutex;                  // of `plans` only; never held while building or launching
  std::map<int32_t, PlanPtr> plans;  // by device

  PlanPtr Find(int32_t device) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto it = plans.find(device);
    return it == plans.end() ? nullptr : it->second;
  }
};

// Not zero: the CPU backend, started first, would take the type for unregistered and die.
ffi::TypeId ConvState::id = {reinterpret_cast<intptr_t>(&ConvState::id)};
ffi::TypeInfo ConvState::info = ffi::MakeTypeInfo<ConvState>();

ffi::TypeId* ConvStateTypeId() { return &ConvState::id; }
const ffi::TypeInfo* ConvStateTypeInfo() { return &ConvState::info; }

namespace {

constexpr size_t kAlignment = 16;  // that plans are built for

ffi::DataType DataTypeOf(OutType type) {
  switch (type) {
    case OutType::kInt8:
      return ffi::DataType::S8;
    case OutType::kInt32:
      return ffi::DataType::S32;
    case OutType::kFloat32:
      return ffi::DataType::F32;
    case OutType::kBfloat16:
      return ffi::DataType::BF16;
    case OutType::kFloat16:
      return ffi::DataType::F16;
  }
  return ffi::DataType::INVALID;
}

// Checks type, shape and alignment; at instantiation there is no data, which counts as aligned.
Error CheckBuffer(const char* name, const ffi::AnyBuffer& buffer, ffi::DataType type,
                  const std::vector<int64_t>& dims, const Problem& problem) {
  const auto found = buffer.dimensions();
  if (buffer.element_type() != type ||
      !std::equal(dims.begin(), dims.end(), found.begin(), found.end())) {
    const auto list = [](auto begin, auto end) {
      std::string text;
      for (; begin != end; ++begin) text += StrCat(text.empty() ? "" : ",", *begin);
      return text;
    };
    return Error::InvalidArgument(
        StrCat("jax_qconv: operand '", name, "' is ", buffer.element_type(), "[",
               list(found.begin(), found.end()), "], but '", problem.text, "' needs ", type, "[",
               list(dims.begin(), dims.end()), "]"));
  }
  if (reinterpret_cast<uintptr_t>(buffer.untyped_data()) % kAlignment != 0) {
    return Error::InvalidArgument(StrCat("jax_qconv: operand '", name, "' isn't aligned to ",
                                         kAlignment, " bytes; copy it with jax.numpy.copy"));
  }
  return Error::Success();
}

// The buffers of a call in their places, checked against the problem.
ErrorOr<Operands> Decode(const ConvState& state, ffi::RemainingArgs args,
                         ffi::RemainingRets results) {
  const Problem& problem = state.problem;
  if (args.size() != state.slots.size() || results.size() != 1) {
    return Unexpected(Error::InvalidArgument(
        StrCat("jax_qconv: got ", args.size(), " operands and ", results.size(), " results, but '",
               problem.text, "' has ", state.slots.size(), " and 1")));
  }
  Operands operands;
  for (size_t i = 0; i < state.slots.size(); ++i) {
    const OperandSlot& slot = state.slots[i];
    JQ_ASSIGN_OR_UNEXPECTED(const auto buffer, args.get<ffi::AnyBuffer>(i));
    const auto type = slot.bytes_per_element == 1 ? ffi::DataType::S8
                      : slot.is_int               ? ffi::DataType::S32
                                                  : ffi::DataType::F32;
    JQ_RETURN_UNEXPECTED_IF_ERROR(CheckBuffer(slot.name, buffer, type, slot.dims, problem));
    operands.*slot.member = buffer.untyped_data();
  }
  JQ_ASSIGN_OR_UNEXPECTED(auto result, results.get<ffi::AnyBuffer>(0));
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      CheckBuffer("out", *result, DataTypeOf(problem.out), problem.out_dims(), problem));
  operands.out = result->untyped_data();
  return operands;
}

ErrorOr<std::unique_ptr<ConvState>> Instantiate(ffi::RemainingArgs args, ffi::RemainingRets results,
                                                ffi::Dictionary attributes) {
  JQ_ASSIGN_OR_UNEXPECTED(const int64_t schema, attributes.get<int64_t>("schema"));
  if (schema != kConvSchema) {
    return Unexpected(Error::InvalidArgument(
        StrCat("jax_qconv: the program was compiled with schema ", schema,
               " of the call, this version runs schema ", kConvSchema,
               "; compile it again, or use the version it was compiled with")));
  }
  auto state = std::make_unique<ConvState>();
  JQ_ASSIGN_OR_UNEXPECTED(const auto problem, attributes.get<std::string_view>("problem"));
  JQ_ASSIGN_OR_UNEXPECTED(const auto plan, attributes.get<std::string_view>("plan"));
  JQ_ASSIGN_OR_UNEXPECTED(state->pinned, attributes.get<bool>("pinned"));
  JQ_ASSIGN_OR_UNEXPECTED(state->problem, Problem::Parse(std::string(problem)));
  state->slots = InputSlots(state->problem);
  JQ_ASSIGN_OR_UNEXPECTED(state->plan_name, PlanName::Parse(std::string(plan)));
  // Some versions of XLA show shapes here (without data), others nothing.
  if (args.size() != 0) {
    JQ_ASSIGN_OR_UNEXPECTED(const auto ignored, Decode(*state, args, results));
    static_cast<void>(ignored);
  }
  return state;
}

Error Initialize(ConvState* state, int32_t device) {
  if (state->Find(device) != nullptr) return Error::Success();
  auto plan = ResolvePlan(state->problem, state->plan_name, state->pinned, device);
  if (!plan.has_value()) return Annotate(plan.error(), "jax_qconv");
  std::lock_guard<std::mutex> lock(state->mutex);
  state->plans.emplace(device, *plan);
  return Error::Success();
}

Error Execute(ffi::RemainingArgs args, ffi::RemainingRets results, ConvState* state, int32_t device,
              CUstream stream) {
  const PlanPtr plan = state->Find(device);
  if (plan == nullptr) {
    return Error::Internal(StrCat("jax_qconv: run before it was initialized on device ", device));
  }
  JQ_ASSIGN_OR_RETURN(const Operands operands, Decode(*state, args, results));
  if (Error error = plan->Launch(operands, stream); error.failure()) {
    return Annotate(error, StrCat("jax_qconv, plan '", plan->name().ToString(), "'"));
  }
  return Error::Success();
}

// The handler of the FFI for a stage: no exception gets past it.
template <auto stage>
struct Handler;
template <typename Result, typename... Args, Result (*stage)(Args...)>
struct Handler<stage> {
  static Result Call(Args... args) {
    return NoThrow([&]() -> Result { return stage(std::move(args)...); });
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxQconvInstantiate, Handler<Instantiate>::Call,
                              ffi::Ffi::BindInstantiate().RemainingArgs().RemainingRets().Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxQconvInitialize, Handler<Initialize>::Call,
                              ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()
                                  .Ctx<ffi::State<ConvState>>()
                                  .Ctx<ffi::DeviceOrdinal>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxQconvExecute, Handler<Execute>::Call,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Ctx<ffi::State<ConvState>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Ctx<ffi::PlatformStream<CUstream>>(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_qconv
