// What the two ways back through a depthwise stage by rows have in common: whose channels, what is done to rows on
// their way into planes and to gradients on their way out, and the sums of the parts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/depthwise_rows.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/streaming.h"

namespace dwsep {

// Where a group of channels is on its way back.
class StageRows : protected RowsGroup {
 public:
  // `sums` [block][taps, then bias][lane], `affine_sums` [2][padded channels] or null: this group's begin at zero.
  StageRows(const RowsPlan& plan, int64_t part, int64_t first_block, const StageBackward& stage,
            const DepthwiseBackwardTensors& tensors, const GradientRows* taker, bool stream, float* sums,
            double* affine_sums)
      : RowsGroup(plan, first_block),
        part_(part),
        stage_(stage),
        tensors_(tensors),
        taker_(taker),
        stream_(stream),
        sums_(sums + first_block * plan.sums_of_block()),
        affine_sums_(affine_sums),
        input_load_{nullptr, stage.scale, stage.shift, stage.activation} {
    if (stage.correction != nullptr) {
      gradient_load_ = {stage.y, stage.correction, stage.correction + plan.pixel_stride, Activation::kNone};
    }
    std::fill_n(sums_, group_ * plan.sums_of_block(), 0.0f);
    for (int64_t row = 0; affine_sums != nullptr && row < 2; ++row) {
      std::fill_n(affine_sums + row * plan.padded() + channel(), group_ * plan.lanes, 0.0);
    }
  }

 protected:
  int64_t part_;
  const StageBackward& stage_;
  const DepthwiseBackwardTensors& tensors_;
  const GradientRows* taker_;
  bool stream_;
  float* sums_;  // of the group
  double* affine_sums_;
  StageLoad input_load_, gradient_load_ = {};

  const float* gradient() const { return static_cast<const float*>(tensors_.gradient); }
  const float* x() const { return static_cast<const float*>(tensors_.x); }
  bool is_plain() const { return stage_.scale == nullptr && stage_.activation == Activation::kNone; }

  // Takes gradients in planes, of channel blocks `blocks` and of pixels whose first is `offset` floats from the
  // tensor's beginning, through norm and activation: into the tensor, or, one block, where they are for somebody who
  // takes them.
  StageGradientRow back(float* planes, int64_t block_stride, Range blocks, int64_t offset, int64_t pixels) const {
    const bool affine = stage_.scale != nullptr;
    const int64_t lanes = plan_.lanes, first = channel() + blocks.begin * lanes;
    offset += blocks.begin * lanes;
    StageGradientRow job = {planes,
                            lanes,
                            block_stride,
                            x() + offset,
                            affine ? stage_.scale + first : nullptr,
                            affine ? stage_.shift + first : nullptr,
                            stage_.activation,
                            plan_.pixel_stride,
                            pixels,
                            (blocks.size() - 1) * lanes + valid(blocks.end - 1),
                            planes,
                            stream_,
                            affine ? affine_sums_ + first : nullptr,
                            plan_.padded()};
    job.out_stride = lanes;
    if (taker_ == nullptr) {
      job.out = static_cast<float*>(tensors_.x_gradient) + offset;
      job.out_stride = plan_.pixel_stride;
    }
    return job;
  }
};

// The way back of all parts, each group of channels a `Rows` made of what StageRows is and memory.
template <class Rows>
void run_stage_rows(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                    const DepthwiseBackwardTensors& tensors, const GradientRows* taker) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts();
  const int64_t part_floats = plan.blocks * plan.sums_of_block();
  const bool affine = stage.affine_gradient != nullptr;
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats());
  const int64_t sums_at = layout.add(parts * part_floats);
  const int64_t affine_at = layout.add_doubles(affine ? parts * 2 * plan.padded() : 0);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  float* sums = memory + sums_at;
  auto* affine_sums = reinterpret_cast<double*>(memory + affine_at);
  const auto* x_gradient = static_cast<const float*>(tensors.x_gradient);
  const int64_t pixels = problem.batch * problem.input[1] * problem.input[2];
  const bool stream =
      x_gradient != nullptr && streams(x_gradient, pixels, problem.channels, plan.pixel_stride, kTrainingStreamBytes);
  run_parts(plan, Rows::floats(plan, stage, taker), [&](int64_t part, int64_t first_block, float* panel) {
    return Rows(plan, part, first_block, stage, tensors, taker, stream, sums + part * part_floats,
                affine ? affine_sums + part * 2 * plan.padded() : nullptr, panel);
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr) {
    write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
  }
  if (affine) {
    add_moments(affine_sums, parts, plan.padded(), problem.channels, stage.affine_gradient, plan.pixel_stride);
  }
}

}  // namespace dwsep
