// Plans of kernels on the matrix units: a block makes tiles of rows x cols, so many in a run.

#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "kernel_engine.h"

namespace jax_qconv {

struct Tile {
  int64_t rows, cols, run;  // what rows and cols are of is the engine's to say
};

// The knobs of a plan; 0 where it has none of a name.
Tile TileOf(const PlanName& name);

// Plans of such (rows, cols), best guess first, each with longer and shorter runs, if a tile can be
// used. Longer runs must leave enough blocks.
std::vector<PlanName> TilePlans(const std::string& engine,
                                const std::vector<std::pair<int64_t, int64_t>>& shapes,
                                const std::function<bool(const Tile&)>& usable,
                                const std::function<int64_t(const Tile&)>& blocks);

// Output channels of a warp: a block's are dealt out evenly, in products of 8.
int64_t WarpChannels(int64_t channels);

// Output channels of a block: the most up to a number that divide them, of which no warp has few;
// where there are none, those of which a warp has the most.
int64_t BlockChannels(int64_t k, int64_t most);

}  // namespace jax_qconv
