// The way back through a depthwise stage and the pointwise one before it at once: the gradient between them, which is
// as wide as the expanded tensor, stays in the cache (docs/design/stages.md).
#pragma once

#include <vector>

#include "cpu/depthwise_rows.h"
#include "cpu/pointwise_stage_kernel.h"

namespace dwsep {

// Of y = W z, z = scale * x + shift, whose own norm takes its statistics from the batch: what y's gradient g
// is at fixed scale and shift is known pixel by pixel, and dy = g + a y + b once all have been. Therefore sums of g z,
// of z z and of z are taken on the way, and what a and b bring to the gradients of W and of x comes from them and from
// x: W^T (a W z + b) is a small product.
class ExpandedStageBackward : GradientRows {
 public:
  // `x_gradient` (pixels, channels) or null.
  ExpandedStageBackward(const PointwiseStage& expand, float* x_gradient);

  // Whether rows of the depthwise stage, all channels of them, fit the cache.
  static bool fits(const RowsPlan& plan) { return plan.group > 0 && plan.group == plan.blocks; }
  // And what is spared is more than what is added.
  static bool pays(const RowsPlan& plan, int64_t channels);

  // Everything but what depends on a and b; the plan must fit. `stage.affine_gradient` must not be null.
  void run(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
           const DepthwiseBackwardTensors& tensors);

  // `correction` (2, out_channels): a, b. `stage` as in `run`. `affine_gradient` (2, channels) is null without a scale
  // of x; `weight_gradient` (out_channels, channels).
  void finish(const StageBackward& stage, const float* correction, double* affine_gradient, float* weight_gradient);

 private:
  const KernelTable& table_;
  const PointwiseStage& expand_;
  float* x_gradient_;
  int64_t lanes_, blocks_, out_blocks_;  // vectors of the inputs, of the outputs
  Operands operands_;                    // of the product with the weights
  int64_t parts_ = 0;
  PointwiseStage centred_;       // the same with other numbers for scale and shift
  float* centre_ = nullptr;      // (padded): what was taken off the inputs
  float* transposed_ = nullptr;  // [column block of inputs][output, padded][column]
  float* zeros_ = nullptr;
  float* products_ = nullptr;  // [part][output vector][input, padded][lane]
  float* squares_ = nullptr;   // [part][input vector][input, padded][lane]
  double* inputs_ = nullptr;   // [part][input, padded]

  int64_t padded() const { return blocks_ * lanes_; }
  int64_t products_floats() const { return out_blocks_ * lanes_ * padded(); }
  int64_t squares_floats() const { return padded() * padded(); }
  int64_t column_blocks() const;
  void place();
  void find_centre();
  float product(int64_t output, int64_t input) const;
  double square(int64_t input, int64_t other) const;
  std::vector<double> input_sums() const;
  void write_weight_gradient(const float* correction, const std::vector<double>& sums, float* weight_gradient) const;
  void add_correction(const StageBackward& stage, const float* correction, const std::vector<double>& sums,
                      double* affine_gradient) const;

  int64_t memory_floats(int64_t pixels) const override { return padded() * pixels; }
  void take(int64_t part, int64_t first, int64_t pixels, const float* panel, float* memory,
            const Prefetch& next) const override;
  void expect(RowsAhead& ahead, int64_t first, int64_t pixels) const override;
};

}  // namespace dwsep
