#include "cpu/depthwise_stage_kernel.h"

#include <algorithm>

#include "cpu/depthwise_rows.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

class StageTile : PlaneTile {
 public:
  static int64_t floats(const PlanePlan& plan) {
    return plan.group * plan.x_plane + plan.largest(kWidth, &AxisTile::output) * plan.lanes;
  }

  StageTile(const PlanePlan& plan, const StageLoad& load, float* memory)
      : PlaneTile(plan, memory), load_(load), row_(memory + plan.group * plan.x_plane) {}

  // Adds to `sums` [2][padded channels].
  void run(int64_t image, int64_t tile, int64_t first_block, const float* x, const Strides& x_strides, float* y,
           const Strides& strides, double* sums) {
    move_to(image, tile, first_block);
    gather_x(x, x_strides, &load_);
    const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
    const int64_t lanes = plan_.lanes;
    for (int64_t od = rd.begin; od < rd.end; ++od) {
      for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
        const int64_t at = image_ * strides.image + od * strides.axis[kDepth] + oh * strides.axis[kHeight] +
                           rw.begin * strides.axis[kWidth];
        correlate_outputs(od, oh, rw, [&](int64_t b, int64_t, CorrelateRow& job) {
          const int64_t channel = (block_ + b) * lanes, valid = std::min(lanes, plan_.problem.channels - channel);
          float* target = y + at + channel;
          job.out = row_;
          job.out_stride = lanes;
          plan_.table.correlate_row(job);
          plan_.table.finish_row(
              {row_, job.pixels, valid, target, strides.axis[kWidth], false, sums + channel, plan_.blocks * lanes});
        });
      }
    }
  }

 private:
  const StageLoad& load_;
  float* row_;
};

}  // namespace

void depthwise_stage_forward(const ConvProblem& problem, const WeightSources& weights, const StageLoad& load,
                             const float* x, const Strides& x_strides, float* y, const Strides& y_strides,
                             double* sums) {
  const int64_t row_length = y_strides.axis[kWidth];
  RowsPlan rows(kernels(), problem, false);
  rows.pixel_stride = row_length;
  if (rows.group > 0) {
    depthwise_rows_forward(rows, weights, load, Activation::kNone, x, y, sums);
    return;
  }
  PlanePlan plan(kernels(), problem, TilePurpose::kForward, true);
  const int64_t groups = plan.groups(), items = problem.batch * plan.tile_count();
  const int64_t padded = plan.blocks * plan.lanes;
  // As in the backward: as many parts as the shape says.
  const int64_t parts = std::clamp<int64_t>(ceil_div(16, groups), 1, std::max<int64_t>(1, items));
  Layout layout;
  const int64_t packed_at = layout.add(plan.weight_floats());
  const int64_t sums_at = layout.add_doubles(parts * 2 * padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  auto* part_sums = reinterpret_cast<double*>(memory + sums_at);
  std::fill_n(part_sums, parts * 2 * padded, 0.0);
  parallel_runs(groups * parts, [&](int64_t begin, int64_t end) {
    StageTile tile(plan, load, scratch(Scratch::kPanel, static_cast<std::size_t>(StageTile::floats(plan))));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit % groups, part = unit / groups;
      for (int64_t item = items * part / parts; item < items * (part + 1) / parts; ++item) {
        tile.run(item / plan.tile_count(), item % plan.tile_count(), group * plan.group, x, x_strides, y, y_strides,
                 part_sums + part * 2 * padded);
      }
    }
  });
  add_moments(part_sums, parts, padded, problem.channels, sums, row_length);
}

}  // namespace dwsep
