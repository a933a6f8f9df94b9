#include "cpu/depthwise_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/channels_last.h"
#include "cpu/depthwise_rows.h"
#include "cpu/depthwise_volumes.h"
#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tile.h"
#include "cpu/repeated_channels.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"
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

  void run(const TilePlace& place, Activation activation, const void* x, const Strides& x_strides, void* out,
           const Strides& strides, bool stream) {
    move_to(place.image, place.tile, place.first_block);
    gather_x(x, x_strides);
    const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
    const int64_t multiplier = plan_.problem.multiplier;
    const RowCopy copy = {plan_.problem.element_type,
                          strides.axis[kWidth],
                          strides.channel * multiplier,
                          rw.size(),
                          std::min(plan_.lanes, channels()),
                          0,
                          stream};
    const bool dense = plan_.problem.element_type == ElementType::kFloat32 && multiplier == 1 && strides.channel == 1;
    for (int64_t od = rd.begin; od < rd.end; ++od) {
      for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
        const int64_t at = image_ * strides.image + od * strides.axis[kDepth] + oh * strides.axis[kHeight] +
                           rw.begin * strides.axis[kWidth];
        correlate_outputs(od, oh, rw, [&](int64_t b, int64_t m, CorrelateRow& job) {
          const int64_t channel = (block_ + b) * plan_.lanes * multiplier + m;
          RowCopy block = copy;
          block.channels = std::min(plan_.lanes, plan_.problem.channels - (block_ + b) * plan_.lanes);
          void* target = advanced(out, (at + channel * strides.channel) * plan_.element_size);
          const bool direct = dense && block.channels == plan_.lanes;
          job.out_stride = direct ? strides.axis[kWidth] : plan_.lanes;
          job.activation = activation;
          job.stream = direct && stream;
          const float* source = job.source;
          in_stretches(rw.size(), [&](int64_t from, int64_t pixels) {
            job.source = source + from * job.step;
            job.out = direct ? static_cast<float*>(target) + from * job.out_stride : rows_;
            job.pixels = pixels;
            plan_.table.correlate_row(job);
            block.pixels = pixels;
            void* place = advanced(target, from * strides.axis[kWidth] * plan_.element_size);
            if (!direct) plan_.table.scatter_row(block, rows_, place);
          });
        });
      }
    }
  }

 private:
  float* rows_;
};

// Whether planes are the faster way for a channels-last input, too: where many taps read what was copied once, and
// where the output is so large that it is better stored past the caches. A dilated kernel's taps share few operands, so
// that copying them pays later.
bool planes_pay(const ConvProblem& problem) {
  if (problem.element_type != ElementType::kFloat32 || problem.multiplier != 1 || problem.stride[2] != 1) return false;
  constexpr int64_t kManyTaps = 9;
  const int64_t taps = problem.kernel[0] * problem.kernel[1] * problem.kernel[2];
  const int64_t pixels = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const int64_t bytes = pixels * problem.channels * static_cast<int64_t>(sizeof(float));
  return taps > kManyTaps || bytes >= (problem.dilation[2] == 1 ? kForwardStreamBytes : 2 * kForwardStreamBytes);
}

}  // namespace

void depthwise_conv_forward_on_planes(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                                      const void* x, const Strides& x_strides, void* out, const Strides& out_strides) {
  PlanePlan plan(kernels(), problem, TilePurpose::kForward, x_strides.channel == 1);
  plan.pack(weights, scratch(Scratch::kPack, static_cast<std::size_t>(plan.weight_floats())));
  const int64_t groups = plan.groups(), tiles = plan.tile_count();
  const auto place = [&](int64_t unit) {
    return TilePlace{unit / groups / tiles, unit / groups % tiles, unit % groups * plan.group};
  };
  const int64_t pixels = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const bool stream =
      streams_from_planes(problem.element_type, out, out_strides, pixels, problem.inner_channels, kForwardStreamBytes);
  parallel_runs(groups * problem.batch * tiles, [&](int64_t begin, int64_t end) {
    ForwardTile tile(plan, scratch(Scratch::kPanel, static_cast<std::size_t>(ForwardTile::floats(plan))));
    for (int64_t unit = begin; unit < end; ++unit) {
      tile.run(place(unit), activation, x, x_strides, out, out_strides, stream);
    }
    plan.table.finish_streams();
  });
}

void depthwise_conv_forward(ConvProblem problem, const WeightSources& weights, Activation activation, const void* x,
                            void* out) {
  const RepeatedChannels wide(problem, x);
  problem = of_repeated_channels(problem);
  x = wide.data();
  RowsPlan rows(kernels(), problem, false);
  if (rows.pays(false)) {
    depthwise_rows_forward(rows, weights, {}, activation, x, out, nullptr);
    return;
  }
  VolumePlan volumes(kernels(), problem, false);
  if (volumes.pays(false)) {
    depthwise_volumes_forward(volumes, weights, activation, x, out);
    return;
  }
  if (!rows.leaves_to_direct() && planes_pay(problem)) {
    depthwise_conv_forward_on_planes(problem, weights, activation, x,
                                     channels_last_strides(problem.input, problem.channels), out,
                                     channels_last_strides(problem.output, problem.inner_channels));
    return;
  }
  depthwise_conv_forward(problem, pack_weights(problem, kernels(), weights), activation, x, out);
}

void depthwise_conv_forward(ConvProblem problem, const PackedWeights& weights, Activation activation, const void* x,
                            void* out) {
  const KernelTable& table = kernels();
  const RepeatedChannels wide(problem, x);
  problem = of_repeated_channels(problem);
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  const int64_t bytes_of_pixel = problem.inner_channels * static_cast<int64_t>(sizeof(float));
  // Two rows are computed from one reading of what they share, so that a tile has several, if threads then get any.
  const int64_t rows = problem.batch * problem.output[0] * problem.output[1];
  const int64_t several = std::clamp<int64_t>(rows / thread_count(), 1, 4);
  const int64_t element_size = element_bytes(problem.element_type);
  const int64_t outputs = rows * problem.output[2];
  problem.reads_ahead = input_elements(problem) * element_size > l2_cache_bytes();
  problem.stream =
      (input_elements(problem) + outputs * problem.inner_channels) * element_size > kCachedBytes &&
      streams(problem.element_type, out, outputs, problem.inner_channels, problem.inner_channels, kForwardStreamBytes);
  const Tiling tiling(problem, std::max(l1_cache_bytes() / bytes_of_pixel, several * problem.output[2]), 1, 1,
                      thread_count());
  parallel_runs(tiling.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      table.depthwise_tile(problem, weights, activation, wide.data(), out, tiling[i]);
    }
    if (problem.stream) table.finish_streams();
  });
}

}  // namespace dwsep
