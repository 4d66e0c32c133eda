#include "problem.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <sstream>

namespace jax_qconv {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // kernels index with 32-bit integers
constexpr int64_t kMaxOutChannels = 64 * 65535;

const std::map<std::string, OutType> kOutTypes = {{"int8", OutType::kInt8},
                                                  {"int32", OutType::kInt32},
                                                  {"float32", OutType::kFloat32},
                                                  {"bfloat16", OutType::kBfloat16},
                                                  {"float16", OutType::kFloat16}};
const std::map<std::string, Activation> kActivations = {{"none", Activation::kNone},
                                                        {"relu", Activation::kRelu},
                                                        {"clip", Activation::kClip},
                                                        {"leaky_relu", Activation::kLeakyRelu},
                                                        {"prelu", Activation::kPrelu},
                                                        {"hard_sigmoid", Activation::kHardSigmoid},
                                                        {"hard_swish", Activation::kHardSwish},
                                                        {"sigmoid", Activation::kSigmoid},
                                                        {"tanh", Activation::kTanh},
                                                        {"silu", Activation::kSilu},
                                                        {"gelu", Activation::kGelu},
                                                        {"gelu_tanh", Activation::kGeluTanh}};
const std::map<std::string, Offset> kOffsets = {
    {"none", Offset::kNone}, {"channel", Offset::kPerChannel}, {"map", Offset::kMap}};
const std::map<std::string, bool> kBooleans = {{"0", false}, {"1", true}};

// Fields of the text, read one by one; the first error is kept.
class Fields {
 public:
  explicit Fields(const std::string& text) : text_(text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        Fail(StrCat("'", word, "' is not of the form name=value"));
      } else if (!values_.emplace(word.substr(0, equals), word.substr(equals + 1)).second) {
        Fail(StrCat("field '", word.substr(0, equals), "' stands twice"));
      }
    }
  }

  std::string Take(const std::string& name) {
    const auto it = values_.find(name);
    if (it == values_.end()) {
      Fail(StrCat("field '", name, "' is missing"));
      return "";
    }
    std::string value = it->second;
    values_.erase(it);
    return value;
  }

  // How many values a field has, separated by commas.
  size_t Count(const std::string& name) const {
    const auto it = values_.find(name);
    return it == values_.end() ? 0 : 1 + std::count(it->second.begin(), it->second.end(), ',');
  }

  // A list of integers, each at least `minimum`.
  std::vector<int64_t> Ints(const std::string& name, size_t size, int64_t minimum) {
    const std::string value = Take(name);
    std::vector<int64_t> numbers(size);
    const char* at = value.data();
    const char* end = at + value.size();
    for (size_t i = 0; i < size; ++i) {
      const auto [next, code] = std::from_chars(at, end, numbers[i]);
      const bool separated = i + 1 == size ? next == end : next < end && *next == ',';
      if (code != std::errc() || !separated || numbers[i] < minimum || numbers[i] > kMaxElements) {
        Fail(StrCat(name, "=", value, " must be ", size, " integers between ", minimum, " and ",
                    kMaxElements));
        return std::vector<int64_t>(size, std::max<int64_t>(minimum, 1));
      }
      at = next + 1;
    }
    return numbers;
  }

  // A field that may be left out, which means its first choice.
  template <typename T>
  T Optional(const std::string& name, const std::map<std::string, T>& choices) {
    return values_.contains(name) ? Choice(name, choices) : T{};
  }

  template <typename T>
  T Choice(const std::string& name, const std::map<std::string, T>& choices) {
    const std::string value = Take(name);
    const auto it = choices.find(value);
    if (it != choices.end()) return it->second;
    std::string known;
    for (const auto& [choice, _] : choices) known += " " + choice;
    Fail(StrCat(name, "=", value, " must be one of:", known));
    return T{};
  }

  float Float(const std::string& name) {
    const std::string value = Take(name);
    double number = 0;
    const char* end = value.data() + value.size();
    const auto [next, code] = std::from_chars(value.data(), end, number);
    if (code != std::errc() || next != end || !std::isfinite(static_cast<float>(number))) {
      Fail(StrCat(name, "=", value, " must be a finite number"));
    }
    return static_cast<float>(number);
  }

  void Fail(const std::string& what) {
    if (!error_) error_ = Error::InvalidArgument(StrCat(what, " in problem '", text_, "'"));
  }

  std::optional<Error> error() {
    if (!values_.empty()) Fail(StrCat("field '", values_.begin()->first, "' is not known"));
    return error_;
  }

 private:
  std::string text_;
  std::map<std::string, std::string> values_;
  std::optional<Error> error_;
};

}  // namespace

size_t SizeOf(OutType type) {
  switch (type) {
    case OutType::kInt8:
      return 1;
    case OutType::kBfloat16:
    case OutType::kFloat16:
      return 2;
    case OutType::kInt32:
    case OutType::kFloat32:
      return 4;
  }
  return 0;
}

std::vector<int64_t> Problem::Dims(int64_t first, const Axes& axes, int64_t last) const {
  std::vector<int64_t> dims = {first};
  dims.insert(dims.end(), axes.end() - rank, axes.end());
  dims.push_back(last);
  return dims;
}

std::vector<int64_t> Problem::offset_dims() const {
  if (offset == Offset::kPerChannel) return {k};
  auto dims = out_dims();
  dims.erase(dims.begin());
  return dims;
}

ErrorOr<Problem> Problem::Parse(const std::string& text) {
  Fields fields(text);
  Problem problem;
  problem.text = text;
  const size_t rank = fields.Count("x") == 5 ? 3 : 2;
  problem.rank = static_cast<int>(rank);
  const auto x = fields.Ints("x", rank + 2, 1);
  const auto w = fields.Ints("w", rank + 2, 1);
  const auto strides = fields.Ints("strides", rank, 1);
  const auto padding = fields.Ints("padding", 2 * rank, 0);
  const auto dilation = fields.Ints("dilation", rank, 1);
  problem.n = x.front();
  problem.c = x.back();
  problem.k = w.front();
  problem.groups = fields.Ints("groups", 1, 1)[0];
  problem.size = problem.kernel = problem.strides = problem.dilation = {1, 1, 1};
  for (size_t i = 0; i < rank; ++i) {
    const size_t axis = 3 - rank + i;
    problem.size[axis] = x[1 + i];
    problem.kernel[axis] = w[1 + i];
    problem.strides[axis] = strides[i];
    problem.dilation[axis] = dilation[i];
    problem.pad_before[axis] = padding[2 * i];
    problem.pad_after[axis] = padding[2 * i + 1];
  }
  problem.out = fields.Choice("out", kOutTypes);
  problem.activation = fields.Choice("activation", kActivations);
  problem.slope = fields.Float("slope");
  problem.residual = fields.Choice("residual", kBooleans);
  problem.offset = fields.Optional("offset", kOffsets);
  problem.residual_zero_point = fields.Optional("residual_zero_point", kBooleans);
  problem.activation_first = fields.Optional("activation_first", kBooleans);
  problem.requantize = fields.Optional("requantize", kBooleans);

  if (problem.c % problem.groups != 0 || problem.k % problem.groups != 0) {
    fields.Fail(StrCat("groups=", problem.groups, " must divide the ", problem.c, " input and ",
                       problem.k, " output channels"));
  } else if (w.back() != problem.channels_per_group()) {
    fields.Fail(StrCat("w has ", w.back(), " input channels and x has ", problem.c, " in ",
                       problem.groups, " groups"));
  }
  // Below this bound int32 sums can't overflow.
  const int64_t largest = problem.offset == Offset::kNone ? 128 : 255;
  const int64_t max_taps = ((int64_t{1} << 31) - 1) / (largest * 128);
  int64_t taps = 1;
  for (size_t i = 1; i < w.size(); ++i) {
    taps *= w[i];
    if (taps > max_taps) {
      fields.Fail(
          StrCat("the int32 accumulator could overflow: more than ", max_taps, " products"));
      break;
    }
  }
  // The checker's grid of blocks is legal.
  if (problem.k > kMaxOutChannels) {
    fields.Fail(StrCat("K=", problem.k, " is more than ", kMaxOutChannels));
  }
  if (problem.c % 4 != 0) fields.Fail(StrCat("channels C=", problem.c, " must be a multiple of 4"));
  if (!problem.has_epilogue() && (problem.residual || problem.activation != Activation::kNone)) {
    fields.Fail("out=int32 is the bare accumulator and takes no residual or activation");
  }
  if (!problem.residual && (problem.residual_zero_point || problem.activation_first)) {
    fields.Fail("without a residual there is neither residual_zero_point nor activation_first");
  }
  if (problem.requantize && problem.out != OutType::kInt8) {
    fields.Fail("requantize=1 is for out=int8");
  }
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t padded = problem.size[axis] + problem.pad_before[axis] + problem.pad_after[axis];
    const int64_t rest = padded - (problem.kernel[axis] - 1) * problem.dilation[axis] - 1;
    if (rest < 0) fields.Fail("the kernel is larger than the padded input");
    if (padded > kMaxElements) {
      fields.Fail(StrCat("the padded input has a side of more than ", kMaxElements, " elements"));
    }
    problem.out_size[axis] = rest / problem.strides[axis] + 1;
  }
  if (auto error = fields.error()) return Unexpected(*error);

  // Each factor is below 2^31, so the product of two can't overflow; check one by one.
  for (const auto& shape : {problem.x_dims(), problem.w_dims(), problem.out_dims()}) {
    int64_t elements = 1;
    for (int64_t size : shape) {
      elements *= size;
      if (elements > kMaxElements) {
        return Unexpected(Error::InvalidArgument(
            StrCat("a tensor has more than ", kMaxElements, " elements in problem '", text, "'")));
      }
    }
  }
  return problem;
}

ConvParams ParamsOf(const Problem& p) {
  ConvParams params{};
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  params.n = narrow(p.n);
  params.c = narrow(p.c);
  params.k = narrow(p.k);
  params.groups = narrow(p.groups);
  for (size_t axis = 0; axis < 3; ++axis) {
    params.size[axis] = narrow(p.size[axis]);
    params.kernel[axis] = narrow(p.kernel[axis]);
    params.out_size[axis] = narrow(p.out_size[axis]);
    params.stride[axis] = narrow(p.strides[axis]);
    params.pad[axis] = narrow(p.pad_before[axis]);
    params.dilation[axis] = narrow(p.dilation[axis]);
  }
  params.out = static_cast<int>(p.out);
  params.activation = static_cast<int>(p.activation);
  params.slope = p.slope;
  params.offset = static_cast<int>(p.offset);
  params.residual = p.residual;
  params.residual_zero_point = p.residual_zero_point;
  params.activation_first = p.activation_first;
  params.requantize = p.requantize;
  return params;
}

std::vector<OperandSlot> InputSlots(const Problem& problem) {
  const auto& p = problem;
  std::vector<OperandSlot> slots = {{"x", &Operands::x, p.x_dims(), 1},
                                    {"w", &Operands::w, p.w_dims(), 1}};
  const auto add = [&](bool present, OperandSlot slot) {
    if (present) slots.push_back(std::move(slot));
  };
  add(p.offset != Offset::kNone, {"z", &Operands::z, p.offset_dims(), 4, true});
  add(p.has_epilogue(), {"m", &Operands::m, {p.k}, 4});
  add(p.has_epilogue(), {"b", &Operands::b, {p.k}, 4});
  add(p.residual, {"r", &Operands::r, p.out_dims(), 1});
  add(p.residual, {"m_r", &Operands::m_r, {}, 4});
  add(p.residual_zero_point, {"z_r", &Operands::z_r, {}, 4});
  const bool clip = p.activation == Activation::kClip;
  add(clip, {"lower", &Operands::lower, {}, 4});
  add(clip, {"upper", &Operands::upper, {}, 4});
  add(p.activation == Activation::kPrelu, {"slopes", &Operands::slopes, {p.k}, 4});
  add(p.requantize, {"m_y", &Operands::m_y, {}, 4});
  add(p.requantize, {"b_y", &Operands::b_y, {}, 4});
  return slots;
}

}  // namespace jax_qconv
