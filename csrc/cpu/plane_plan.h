// What every tile of a convolution on planes shares: how the image is cut, and the weights in the order of the planes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"
#include "cpu/packing.h"
#include "cpu/plane_tiling.h"

namespace dwsep {

enum Axis { kDepth, kHeight, kWidth };

struct PlanePlan {
  const KernelTable& table;
  const ConvProblem& problem;
  std::array<ConvAxis, 3> axes;
  std::array<std::vector<AxisTile>, 3> tiles;
  int64_t lanes;
  int64_t blocks;  // of input channels; the outputs of one input channel lie in `multiplier` planes of their own
  int64_t taps;
  int64_t element_size;
  int64_t group;                   // channel blocks that a tile computes together
  int64_t x_plane;                 // floats of the largest plane of inputs
  int64_t g_plane;                 // and of output gradients, which forward has none of
  const float* weights = nullptr;  // [input block][m][tap][lane]
  const float* bias = nullptr;     // [input block][m][lane]

  // Tiles for `purpose`; `together` where a pixel's channels are consecutive in memory.
  PlanePlan(const KernelTable& table, const ConvProblem& problem, TilePurpose purpose, bool together);

  int64_t tile_count() const {
    return static_cast<int64_t>(tiles[kDepth].size() * tiles[kHeight].size() * tiles[kWidth].size());
  }
  int64_t groups() const { return ceil_div(blocks, group); }
  int64_t largest(Axis axis, Range AxisTile::* range) const;
  int64_t tap_index(int64_t d, int64_t h, int64_t w) const {
    return (d * axes[kHeight].kernel + h) * axes[kWidth].kernel + w;
  }
  int64_t weight_floats() const { return blocks * problem.multiplier * (taps + 1) * lanes; }
  // Packs weights and bias into `memory`, weight_floats() long, which must outlive the plan.
  void pack(const WeightSources& sources, float* memory);

 private:
  void cut(TilePurpose purpose, bool together);
  void measure();
};

// Weights [input block][m][tap][lane] and bias [input block][m][lane], zeros beyond the channels.
void pack_for_planes(const ConvProblem& problem, int64_t lanes, const WeightSources& sources, float* weights,
                     float* bias);

}  // namespace dwsep
