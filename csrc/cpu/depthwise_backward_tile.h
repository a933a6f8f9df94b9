// One tile of the depthwise backward pass, on planes.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/depthwise_backward_kernel.h"
#include "cpu/plane_tile.h"

namespace dwsep {

// Floats of the sums of one channel block: [m][tap, then bias][lane].
int64_t sums_of_block(const PlanePlan& plan);

class BackwardTile : PlaneTile {
 public:
  static int64_t floats(const PlanePlan& plan);  // of memory, gradient planes included
  static int64_t floats_without_gradient(const PlanePlan& plan);

  BackwardTile(const PlanePlan& plan, const DepthwiseBackwardTensors& tensors, Activation activation, float* memory,
               float* sums);

  // From here on x is a stage's raw input; `affine_sums` [2][padded channels] are added to, or null.
  void set_stage(const StageBackward& stage, double* affine_sums);

  // From here on the gradient of x is stored past the caches: streams(it) and a multiplier of 1.
  void set_stream() { stream_ = true; }

  // Everything that is wanted for one tile; `next`, if any, is the one that will be run after it.
  void run(const TilePlace& place, const TilePlace* next);

  // The same with the gradient of the whole image in planes already, that of `first_block` first; memory for them is
  // not needed. tensors.gradient is not read.
  void run_on(int64_t image, int64_t tile, int64_t first_block, const float* gradient_planes);

 private:
  const DepthwiseBackwardTensors& tensors_;
  Activation activation_;
  float* sums_;
  float* rows_;
  float* zeros_;
  float* own_planes_;
  const float* g_planes_;
  bool staged_ = false;
  bool stream_ = false;
  StageLoad x_load_ = {};
  StageLoad gradient_load_ = {};
  double* affine_sums_ = nullptr;
  std::vector<TapList> lists_;
  std::vector<const float*> pointers_;

  int64_t g_offset(int64_t d, int64_t h, int64_t w) const { return offset(&AxisTile::gradient, d, h, w); }
  void look_ahead(const TilePlace& next);
  void gather_gradient();
  void differentiate_activation();
  void compute_x_gradient();
  void write_stage_row(float* target, int64_t at) const;
  void add_taps(TapList& list, Range kd, Range kh, int64_t d, int64_t h, int64_t first, int64_t base, int64_t m) const;
  void add_weight_gradient();
  void add_weight_gradient_rows(WeightGradientRows job);
  void add_bias_gradient();
};

// Sums `parts` sums of all blocks, [block][m][tap, then bias][lane] each, in their order and writes the parameters'
// gradients.
void write_weight_gradients(const ConvProblem& problem, int64_t lanes, const DepthwiseBackwardTensors& tensors,
                            float* sums, int64_t parts);

}  // namespace dwsep
