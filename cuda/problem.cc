#include "problem.h"

#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <sstream>
#include <tuple>

namespace jax_qconv {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // kernels index with 32-bit integers
constexpr int64_t kMaxTaps = (int64_t{1} << 31) / (128 * 128) - 1;
constexpr int64_t kMaxOutChannels = 64 * 65535;

const std::map<std::string, OutType> kOutTypes = {{"int8", OutType::kInt8},
                                                  {"int32", OutType::kInt32},
                                                  {"float32", OutType::kFloat32},
                                                  {"bfloat16", OutType::kBfloat16},
                                                  {"float16", OutType::kFloat16}};
const std::map<std::string, Activation> kActivations = {{"none", Activation::kNone},
                                                        {"relu", Activation::kRelu},
                                                        {"clip", Activation::kClip},
                                                        {"leaky_relu", Activation::kLeakyRelu}};

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

  // A list of integers, each at least `minimum`.
  template <size_t size>
  std::array<int64_t, size> Ints(const std::string& name, int64_t minimum) {
    const std::string value = Take(name);
    std::array<int64_t, size> numbers{};
    const char* at = value.data();
    const char* end = at + value.size();
    for (size_t i = 0; i < size; ++i) {
      const auto [next, code] = std::from_chars(at, end, numbers[i]);
      const bool separated = i + 1 == size ? next == end : next < end && *next == ',';
      if (code != std::errc() || !separated || numbers[i] < minimum || numbers[i] > kMaxElements) {
        Fail(StrCat(name, "=", value, " must be ", size, " integers between ", minimum, " and ",
                    kMaxElements));
        return numbers;
      }
      at = next + 1;
    }
    return numbers;
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

ErrorOr<Problem> Problem::Parse(const std::string& text) {
  Fields fields(text);
  Problem problem;
  problem.text = text;
  const auto x = fields.Ints<4>("x", 1);
  const auto w = fields.Ints<4>("w", 1);
  std::tie(problem.n, problem.h, problem.w, problem.c) = std::tuple_cat(x);
  std::tie(problem.k, problem.r, problem.s, std::ignore) = std::tuple_cat(w);
  problem.strides = fields.Ints<2>("strides", 1);
  problem.padding = fields.Ints<4>("padding", 0);
  problem.dilation = fields.Ints<2>("dilation", 1);
  const auto groups = fields.Ints<1>("groups", 1);
  problem.out = fields.Choice("out", kOutTypes);
  problem.activation = fields.Choice("activation", kActivations);
  problem.slope = fields.Float("slope");
  problem.residual = fields.Choice<bool>("residual", {{"0", false}, {"1", true}});

  if (w[3] != problem.c) {
    fields.Fail(StrCat("w has ", w[3], " input channels and x has ", problem.c));
  }
  if (groups[0] != 1) fields.Fail(StrCat("groups=", groups[0], " must be 1"));
  // Below these bounds int32 sums can't overflow, and the checker's grid of blocks is legal.
  if (w[1] * w[2] > kMaxTaps || w[1] * w[2] * w[3] > kMaxTaps) {
    fields.Fail(StrCat("the int32 accumulator could overflow: more than ", kMaxTaps, " taps"));
  }
  if (problem.k > kMaxOutChannels) {
    fields.Fail(StrCat("K=", problem.k, " is more than ", kMaxOutChannels));
  }
  if (problem.c % 4 != 0) fields.Fail(StrCat("channels C=", problem.c, " must be a multiple of 4"));
  if (!problem.has_epilogue() && (problem.residual || problem.activation != Activation::kNone)) {
    fields.Fail("out=int32 is the bare accumulator and takes no residual or activation");
  }
  const auto& [top, bottom, left, right] = problem.padding;
  const int64_t rows = problem.h + top + bottom - (problem.r - 1) * problem.dilation[0] - 1;
  const int64_t columns = problem.w + left + right - (problem.s - 1) * problem.dilation[1] - 1;
  if (rows < 0 || columns < 0) fields.Fail("the kernel is larger than the padded input");
  if (problem.h + top + bottom > kMaxElements || problem.w + left + right > kMaxElements) {
    fields.Fail(StrCat("the padded input has a side of more than ", kMaxElements, " elements"));
  }
  if (auto error = fields.error()) return Unexpected(*error);

  problem.p = rows / problem.strides[0] + 1;
  problem.q = columns / problem.strides[1] + 1;
  // Each factor is below 2^31, so the product of two can't overflow; check one by one.
  for (const auto& shape : {x, w, {problem.n, problem.p, problem.q, problem.k}}) {
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

std::vector<OperandSlot> InputSlots(const Problem& problem) {
  const auto& p = problem;
  std::vector<OperandSlot> slots = {{"x", &Operands::x, {p.n, p.h, p.w, p.c}, 1},
                                    {"w", &Operands::w, {p.k, p.r, p.s, p.c}, 1}};
  if (p.has_epilogue()) {
    slots.push_back({"m", &Operands::m, {p.k}, 4});
    slots.push_back({"b", &Operands::b, {p.k}, 4});
  }
  if (p.residual) {
    slots.push_back({"r", &Operands::r, p.out_dims(), 1});
    slots.push_back({"m_r", &Operands::m_r, {}, 4});
  }
  if (p.activation == Activation::kClip) {
    slots.push_back({"lower", &Operands::lower, {}, 4});
    slots.push_back({"upper", &Operands::upper, {}, 4});
  }
  return slots;
}

}  // namespace jax_qconv
