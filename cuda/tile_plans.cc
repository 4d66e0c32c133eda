#include "tile_plans.h"

#include <algorithm>

namespace jax_qconv {
namespace {

constexpr int64_t kRows = 0, kCols = 1, kRun = 2;  // knobs
constexpr int64_t kFewBlocks = 132;                // that a large GPU needs to be busy

}  // namespace

Tile TileOf(const PlanName& name) {
  const auto knob = [&](int64_t number) {
    const auto it = name.knobs.find(number);
    return it == name.knobs.end() ? 0 : it->second;
  };
  return {knob(kRows), knob(kCols), knob(kRun)};
}

std::vector<PlanName> TilePlans(const std::string& engine,
                                const std::vector<std::pair<int64_t, int64_t>>& shapes,
                                const std::function<bool(const Tile&)>& usable,
                                const std::function<int64_t(const Tile&)>& blocks) {
  std::vector<PlanName> plans;
  for (const int64_t run : {4, 1}) {
    for (const auto& [rows, cols] : shapes) {
      const Tile tile{rows, cols, run};
      if (!usable(tile) || (run > 1 && blocks(tile) < kFewBlocks)) continue;
      const PlanName plan{engine, 0, {{kRows, rows}, {kCols, cols}, {kRun, run}}};
      if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
    }
  }
  return plans;
}

int64_t WarpChannels(int64_t channels) {
  constexpr int64_t kMost = 64;  // whose sums fit a thread's registers
  int64_t most = std::min(kMost, channels);
  while (channels % most || most % 8) --most;
  return most;
}

int64_t BlockChannels(int64_t k, int64_t most) {
  int64_t best = 8;
  for (int64_t channels = most / 8 * 8; channels > 8; channels -= 8) {
    if (k % channels) continue;
    if (2 * WarpChannels(channels) >= std::min<int64_t>(64, k)) return channels;
    if (best == 8 || WarpChannels(channels) > WarpChannels(best)) best = channels;
  }
  return best;
}

}  // namespace jax_qconv
