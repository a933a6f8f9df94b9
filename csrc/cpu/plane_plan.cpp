#include "cpu/plane_plan.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/elements.h"

namespace dwsep {
namespace {

template <class T>
void pack_blocks(const ConvProblem& problem, int64_t lanes, const WeightSources& sources, float* weights, float* bias) {
  const int64_t multiplier = problem.multiplier, taps = problem.kernel[0] * problem.kernel[1] * problem.kernel[2];
  const T* depthwise = static_cast<const T*>(sources.depthwise);
  const T* depthwise_bias = static_cast<const T*>(sources.depthwise_bias);
  for (int64_t block = 0; block < ceil_div(problem.channels, lanes); ++block) {
    for (int64_t m = 0; m < multiplier; ++m) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t channel = block * lanes + lane, inner = channel * multiplier + m;
        const bool inside = channel < problem.channels;
        float* target = weights + (block * multiplier + m) * taps * lanes + lane;
        for (int64_t tap = 0; tap < taps; ++tap) {
          target[tap * lanes] = inside ? as_float(depthwise[inner * taps + tap]) : 0.0f;
        }
        bias[(block * multiplier + m) * lanes + lane] =
            inside && depthwise_bias != nullptr ? as_float(depthwise_bias[inner]) : 0.0f;
      }
    }
  }
}

}  // namespace

PlanePlan::PlanePlan(const KernelTable& kernels, const ConvProblem& of, TilePurpose purpose, bool together)
    : table(kernels),
      problem(of),
      axes{conv_axis(of, kDepth), conv_axis(of, kHeight), conv_axis(of, kWidth)},
      lanes(kernels.lanes),
      blocks(ceil_div(of.channels, kernels.lanes)),
      taps(of.kernel[0] * of.kernel[1] * of.kernel[2]),
      element_size(element_bytes(of.element_type)),
      group(1) {
  cut(purpose, together);
}

int64_t PlanePlan::largest(Axis axis, Range AxisTile::* range) const {
  int64_t size = 0;
  for (const AxisTile& tile : tiles[axis]) size = std::max(size, (tile.*range).size());
  return size;
}

void PlanePlan::measure() {
  x_plane = g_plane = lanes;
  for (const Axis axis : {kDepth, kHeight, kWidth}) {
    x_plane *= std::max<int64_t>(1, largest(axis, &AxisTile::x));
    g_plane *= std::max<int64_t>(1, largest(axis, &AxisTile::gradient));
  }
}

// As few tiles as keep a tile's planes within a part of the L2 cache, cutting where the taps reach least in proportion.
void PlanePlan::cut(TilePurpose purpose, bool together) {
  // Between the tiles of a backward on planes of whole images, what those planes are made of passes through the cache.
  const int64_t part = purpose == TilePurpose::kBackwardWhole ? 4 : 2;
  const int64_t budget = l2_cache_bytes() / part / static_cast<int64_t>(sizeof(float));
  std::array<int64_t, 3> counts = {1, 1, 1};
  const auto make = [&](Axis axis) { tiles[axis] = axis_tiles(axes[axis], counts[axis], axis != kWidth, purpose); };
  for (const Axis axis : {kDepth, kHeight, kWidth}) make(axis);
  measure();
  const auto tile_floats = [&] {
    const bool own = purpose == TilePurpose::kBackward || purpose == TilePurpose::kBackwardRecompute;
    return x_plane + (own ? problem.multiplier * g_plane : 0);
  };
  // Several blocks of channels together read whole stretches of a channels-last pixel. Where even small tiles of them
  // outgrow the cache, fewer blocks are better than tiles that are mostly margin.
  if (together && problem.multiplier == 1) group = std::min(blocks, std::max<int64_t>(1, 64 / lanes));
  while (group * tile_floats() > budget) {
    int chosen = -1;
    double most = group > 1 ? 4.0 : 0.0;
    for (const Axis axis : {kDepth, kHeight, kWidth}) {
      const ConvAxis& a = axes[axis];
      const int64_t extent = std::max(a.input, a.output) / counts[axis];
      // Short rows are slow to compute.
      const double reach = static_cast<double>((a.kernel - 1) * a.dilation + 1) + (axis == kWidth ? 64.0 : 0.0);
      const double ratio = static_cast<double>(extent) / reach;
      if (extent >= 2 && ratio > most) {
        chosen = axis;
        most = ratio;
      }
    }
    if (chosen >= 0) {
      counts[static_cast<std::size_t>(chosen)] *= 2;
      make(static_cast<Axis>(chosen));
      measure();
    } else if (group > 1) {
      group /= 2;
    } else {
      break;
    }
  }
}

void pack_for_planes(const ConvProblem& problem, int64_t lanes, const WeightSources& sources, float* weights,
                     float* bias) {
  if (problem.element_type == ElementType::kFloat32) {
    pack_blocks<float>(problem, lanes, sources, weights, bias);
  } else {
    pack_blocks<uint16_t>(problem, lanes, sources, weights, bias);
  }
}

void PlanePlan::pack(const WeightSources& sources, float* memory) {
  float* packed_bias = memory + blocks * problem.multiplier * taps * lanes;
  pack_for_planes(problem, lanes, sources, memory, packed_bias);
  weights = memory;
  bias = packed_bias;
}

}  // namespace dwsep
