#include "cpu/depthwise_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tile.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace dwsep {
namespace {

class ForwardTile : PlaneTile {
 public:
  static int64_t floats(const PlanePlan& plan) {
    return plan.group * (plan.x_plane + plan.largest(kWidth, &AxisTile::output) * plan.lanes);
  }

  ForwardTile(const PlanePlan& plan, float* memory)
      : PlaneTile(plan, memory), rows_(memory + plan.group * plan.x_plane) {}

  void run(int64_t image, int64_t tile, int64_t first_block, Activation activation, const void* x,
           const Strides& x_strides, void* out, const Strides& strides) {
    move_to(image, tile, first_block);
    gather_x(x, x_strides);
    const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
    const int64_t multiplier = plan_.problem.multiplier;
    const RowCopy copy = {plan_.problem.element_type,        strides.axis[kWidth],
                          strides.channel * multiplier,      rw.size(),
                          std::min(plan_.lanes, channels()), 0};
    for (int64_t od = rd.begin; od < rd.end; ++od) {
      for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
        const int64_t at = image_ * strides.image + od * strides.axis[kDepth] + oh * strides.axis[kHeight] +
                           rw.begin * strides.axis[kWidth];
        correlate_outputs(od, oh, rw, [&](int64_t b, int64_t m, CorrelateRow& job) {
          job.out = rows_;
          job.out_stride = plan_.lanes;
          job.activation = activation;
          plan_.table.correlate_row(job);
          const int64_t channel = (block_ + b) * plan_.lanes * multiplier + m;
          RowCopy block = copy;
          block.channels = std::min(plan_.lanes, plan_.problem.channels - (block_ + b) * plan_.lanes);
          plan_.table.scatter_row(block, rows_, advanced(out, (at + channel * strides.channel) * plan_.element_size));
        });
      }
    }
  }

 private:
  float* rows_;
};

}  // namespace

void depthwise_conv_forward_on_planes(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                                      const void* x, const Strides& x_strides, void* out, const Strides& out_strides) {
  PlanePlan plan(kernels(), problem, TilePurpose::kForward, x_strides.channel == 1);
  plan.pack(weights, scratch(Scratch::kPack, static_cast<std::size_t>(plan.weight_floats())));
  const int64_t groups = plan.groups(), tiles = plan.tile_count();
  parallel_for(groups * problem.batch * tiles, 1, [&](int64_t begin, int64_t end) {
    ForwardTile tile(plan, scratch(Scratch::kPanel, static_cast<std::size_t>(ForwardTile::floats(plan))));
    for (int64_t unit = begin; unit < end; ++unit) {
      tile.run(unit / groups / tiles, unit / groups % tiles, unit % groups * plan.group, activation, x, x_strides, out,
               out_strides);
    }
  });
}

void depthwise_conv_forward(ConvProblem problem, const WeightSources& weights, Activation activation, const void* x,
                            void* out) {
  depthwise_conv_forward(problem, pack_weights(problem, kernels(), weights), activation, x, out);
}

void depthwise_conv_forward(ConvProblem problem, const PackedWeights& weights, Activation activation, const void* x,
                            void* out) {
  const KernelTable& table = kernels();
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  const int64_t bytes_of_pixel = problem.inner_channels * static_cast<int64_t>(sizeof(float));
  const Tiling tiling(problem, l1_cache_bytes() / bytes_of_pixel, 1, 1);
  parallel_for(tiling.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) table.depthwise_tile(problem, weights, activation, x, out, tiling[i]);
  });
}

}  // namespace dwsep
