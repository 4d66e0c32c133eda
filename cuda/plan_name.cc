#include "plan_name.h"

#include <charconv>
#include <sstream>
#include <vector>

namespace jax_qconv {
namespace {

// Knobs that are set in practice, by a name; any other is written k<number>.
constexpr std::pair<const char*, int64_t> kKnobNames[] = {
    {"split_k", 17}, {"cfg", 24}, {"stream_k", 38}};

std::string KnobName(int64_t number) {
  for (const auto& [name, known] : kKnobNames) {
    if (known == number) return name;
  }
  return StrCat("k", number);
}

std::optional<int64_t> ParseInt(const std::string& text) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [next, code] = std::from_chars(text.data(), end, number);
  if (code != std::errc() || next != end || number < 0) return std::nullopt;
  return number;
}

std::optional<int64_t> KnobNumber(const std::string& name) {
  for (const auto& [known, number] : kKnobNames) {
    if (known == name) return number;
  }
  return name.size() > 1 && name[0] == 'k' ? ParseInt(name.substr(1)) : std::nullopt;
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  if (!text.empty() && text.back() == separator) parts.emplace_back();
  return parts;
}

Error BadName(const std::string& text, const std::string& what) {
  return Error::InvalidArgument(
      StrCat("plan '", text, "' ", what,
             "; a plan is named engine:index:knob=value,... such as 'cudnn:4:cfg=26'"));
}

}  // namespace

ErrorOr<PlanName> PlanName::Parse(const std::string& text) {
  const std::vector<std::string> parts = Split(text, ':');
  if (parts.empty() || parts.size() > 3) {
    return Unexpected(BadName(text, "doesn't have one to three parts"));
  }
  PlanName name;
  name.engine = parts[0];
  if (name.engine != "cudnn" && name.engine != "cudnn_bare") {
    return Unexpected(BadName(text, "names no known engine (cudnn, cudnn_bare)"));
  }
  if (parts.size() == 1 && name.engine != "cudnn") {
    return Unexpected(BadName(text, "names no plan: only 'cudnn' alone stands for its best one"));
  }
  if (parts.size() >= 2) {
    name.index = ParseInt(parts[1]);
    if (!name.index) return Unexpected(BadName(text, "has an index that isn't a number"));
  }
  if (parts.size() == 3) {
    for (const std::string& knob : Split(parts[2], ',')) {
      const std::vector<std::string> sides = Split(knob, '=');
      const auto number = sides.size() == 2 ? KnobNumber(sides[0]) : std::nullopt;
      const auto value = sides.size() == 2 ? ParseInt(sides[1]) : std::nullopt;
      if (!number || !value) {
        return Unexpected(BadName(text, StrCat("has the knob '", knob, "' that can't be read")));
      }
      if (!name.knobs.emplace(*number, *value).second) {
        return Unexpected(BadName(text, StrCat("sets the knob '", sides[0], "' twice")));
      }
    }
  }
  return name;
}

std::string PlanName::ToString() const {
  if (!index) return engine;
  std::string text = StrCat(engine, ":", *index);
  char separator = ':';
  for (const auto& [knob, value] : knobs) {
    text += StrCat(separator, KnobName(knob), "=", value);
    separator = ',';
  }
  return text;
}

}  // namespace jax_qconv
