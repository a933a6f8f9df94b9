#include "cpu/depthwise_backward_kernel.h"

#include <algorithm>

#include "cpu/channels_last.h"
#include "cpu/depthwise_backward_tile.h"
#include "cpu/depthwise_direct_backward.h"
#include "cpu/depthwise_lines.h"
#include "cpu/depthwise_rows.h"
#include "cpu/depthwise_volumes.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {

namespace {

bool is_channels_last(const DepthwiseBackwardTensors& tensors, const ConvProblem& problem) {
  const auto dense = [](const Strides& strides, const Strides& wanted) {
    return strides.image == wanted.image && strides.channel == 1 && strides.axis[1] == wanted.axis[1] &&
           strides.axis[2] == wanted.axis[2];
  };
  const Strides x = channels_last_strides(problem.input, problem.channels);
  return dense(tensors.x_strides, x) && (tensors.x_gradient == nullptr || dense(tensors.x_gradient_strides, x)) &&
         dense(tensors.gradient_strides, channels_last_strides(problem.output, problem.channels));
}

// Whether pixels of floats lie so far apart that they share a few sets of the first cache, where what vectors of half a
// line and many taps read again is no longer found. As measured on a Zen 3.
bool crowds_sets(const KernelTable& kernels, const ConvProblem& problem) {
  constexpr int64_t kCrowdedBytes = 2048, kManyTaps = 5;
  return kernels.lanes == kLineFloats / 2 && problem.kernel[2] >= kManyTaps &&
         problem.channels * static_cast<int64_t>(sizeof(float)) % kCrowdedBytes == 0;
}

void run(PlanePlan& plan, const WeightSources& weights, Activation activation, const StageBackward* stage,
         const DepthwiseBackwardTensors& tensors) {
  const ConvProblem& problem = plan.problem;
  const int64_t groups = plan.groups();
  // Parts of the images, each with sums of its own, so that there is work for the threads where channels are few. Their
  // number depends on the shape alone, so that the result does not depend on the threads.
  const int64_t items = problem.batch * plan.tile_count();
  const int64_t parts = std::clamp<int64_t>(ceil_div(16, groups), 1, std::max<int64_t>(1, items));
  const int64_t part_floats = plan.blocks * sums_of_block(plan);
  const int64_t padded = plan.blocks * plan.lanes;
  const bool affine = stage != nullptr && stage->affine_gradient != nullptr;
  Layout layout;
  const int64_t packed_at = layout.add(plan.weight_floats());
  const int64_t sums_at = layout.add(parts * part_floats);
  const int64_t affine_at = layout.add_doubles(affine ? parts * 2 * padded : 0);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float* sums = memory + sums_at;
  plan.pack(weights, memory + packed_at);
  std::fill_n(sums, parts * part_floats, 0.0f);
  auto* affine_sums = reinterpret_cast<double*>(memory + affine_at);
  if (affine) std::fill_n(affine_sums, parts * 2 * padded, 0.0);

  const auto place = [&](int64_t item, int64_t group) {
    return TilePlace{item / plan.tile_count(), item % plan.tile_count(), group * plan.group};
  };
  const auto first_of = [&](int64_t unit) { return place(items * (unit / groups) / parts, unit % groups); };
  const int64_t pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
  const bool stream =
      stage == nullptr && streams_from_planes(problem.element_type, tensors.x_gradient, tensors.x_gradient_strides,
                                              pixels, problem.channels, kTrainingStreamBytes);
  // What is in a cache comes by itself, and where the taps are few, what is asked for pushes planes out of it.
  constexpr int64_t kManyTaps = 25;
  const int64_t outputs = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const int64_t elements = 2 * pixels * problem.channels + outputs * problem.inner_channels;
  const bool ask =
      elements * plan.element_size > kCachedBytes && plan.taps > kManyTaps && plan.axes[kDepth].kernel == 1;
  parallel_runs(groups * parts, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(BackwardTile::floats(plan)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit % groups, part = unit / groups;
      BackwardTile tile(plan, tensors, activation, panel, sums + part * part_floats);
      if (stage != nullptr) tile.set_stage(*stage, affine ? affine_sums + part * 2 * padded : nullptr);
      if (stream) tile.set_stream();
      const int64_t stop = items * (part + 1) / parts;
      for (int64_t item = items * part / parts; item < stop; ++item) {
        const bool more = ask && (item + 1 < stop || unit + 1 < end);
        const TilePlace next = item + 1 < stop ? place(item + 1, group) : first_of(unit + 1);
        tile.run(place(item, group), more ? &next : nullptr);
      }
    }
    plan.table.finish_streams();
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr)
    write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
  if (affine) {
    add_moments(affine_sums, parts, padded, problem.channels, stage->affine_gradient, stage->row_length);
  }
}

}  // namespace

void depthwise_conv_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const DepthwiseBackwardTensors& tensors) {
  if (lines_pay_backward(problem, tensors)) {
    depthwise_lines_backward(problem, weights, activation, tensors);
    return;
  }
  if (activation == Activation::kNone && is_channels_last(tensors, problem)) {
    const bool direct = direct_backward_pays(kernels(), problem, tensors);
    if (direct && !crowds_sets(kernels(), problem)) {
      depthwise_direct_backward(problem, weights, tensors);
      return;
    }
    RowsPlan rows(kernels(), problem, true);
    if (rows.pays(true)) {
      depthwise_rows_backward(rows, weights, {}, tensors);
      return;
    }
    if (direct) {
      depthwise_direct_backward(problem, weights, tensors);
      return;
    }
    VolumePlan volumes(kernels(), problem, true);
    if (volumes.pays(true)) {
      depthwise_volumes_backward(volumes, weights, tensors);
      return;
    }
  }
  const TilePurpose purpose =
      activation == Activation::kNone ? TilePurpose::kBackward : TilePurpose::kBackwardRecompute;
  PlanePlan plan(kernels(), problem, purpose, tensors.gradient_strides.channel == 1);
  run(plan, weights, activation, nullptr, tensors);
}

void depthwise_stage_backward(const ConvProblem& problem, const WeightSources& weights, const StageBackward& stage,
                              const DepthwiseBackwardTensors& tensors) {
  RowsPlan rows(kernels(), problem, true);
  rows.pixel_stride = stage.row_length;
  if (rows.group > 0) {
    depthwise_rows_backward(rows, weights, stage, tensors);
    return;
  }
  PlanePlan plan(kernels(), problem, TilePurpose::kBackward, true);
  run(plan, weights, Activation::kNone, &stage, tensors);
}

}  // namespace dwsep
