#include "plan_name.h"

#include <charconv>
#include <sstream>
#include <vector>

namespace jax_qconv {
namespace {

// What engines call their knobs.
struct EngineKnobs {
  const char* engine;
  std::vector<std::pair<const char*, int64_t>> names;
  bool numbered;  // whether any other knob is written k<number>
};

const std::vector<EngineKnobs>& Engines() {
  // Of cuDNN's knobs those that are set in practice.
  static const auto* engines = new std::vector<EngineKnobs>{
      {"cudnn", {{"split_k", 17}, {"cfg", 24}, {"stream_k", 38}}, true},
      {"cudnn_bare", {{"split_k", 17}, {"cfg", 24}, {"stream_k", 38}}, true},
      {"depthwise", {{"rows", 0}, {"cols", 1}}, false},
      {"pointwise", {{"rows", 0}, {"cols", 1}, {"run", 2}}, false},
      {"stem", {{"rows", 0}, {"cols", 1}, {"run", 2}}, false},
      {"wgmma", {{"rows", 0}, {"cols", 1}, {"run", 2}, {"product", 3}}, false},
      {"auto", {}, false}};
  return *engines;
}

const EngineKnobs* FindEngine(const std::string& name) {
  for (const EngineKnobs& engine : Engines()) {
    if (engine.engine == name) return &engine;
  }
  return nullptr;
}

std::string KnobName(const EngineKnobs* engine, int64_t number) {
  if (engine != nullptr) {
    for (const auto& [name, known] : engine->names) {
      if (known == number) return name;
    }
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

std::optional<int64_t> KnobNumber(const EngineKnobs& engine, const std::string& name) {
  for (const auto& [known, number] : engine.names) {
    if (known == name) return number;
  }
  return engine.numbered && name.size() > 1 && name[0] == 'k' ? ParseInt(name.substr(1))
                                                              : std::nullopt;
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
  const EngineKnobs* engine = FindEngine(name.engine);
  if (engine == nullptr) {
    std::string known;
    for (const auto& one : Engines()) known += StrCat(known.empty() ? "" : ", ", one.engine);
    return Unexpected(BadName(text, StrCat("names no known engine (", known, ")")));
  }
  const bool deferred = name.engine == "cudnn" || name.engine == "auto";
  if (parts.size() == 1 && !deferred) {
    return Unexpected(BadName(
        text, "names no plan: only 'cudnn' alone, or 'auto' for all engines, leaves it open"));
  }
  if (parts.size() > 1 && name.engine == "auto") {
    return Unexpected(BadName(text, "names a plan of no engine"));
  }
  if (parts.size() >= 2) {
    name.index = ParseInt(parts[1]);
    if (!name.index) return Unexpected(BadName(text, "has an index that isn't a number"));
  }
  if (parts.size() == 3) {
    for (const std::string& knob : Split(parts[2], ',')) {
      const std::vector<std::string> sides = Split(knob, '=');
      const auto number = sides.size() == 2 ? KnobNumber(*engine, sides[0]) : std::nullopt;
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
  const EngineKnobs* known = FindEngine(engine);
  std::string text = StrCat(engine, ":", *index);
  char separator = ':';
  for (const auto& [knob, value] : knobs) {
    text += StrCat(separator, KnobName(known, knob), "=", value);
    separator = ',';
  }
  return text;
}

}  // namespace jax_qconv
