// How a pointwise stage brings pixels into panels [channel block][pixel][lane].
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_stage_kernel.h"
#include "cpu/stage_load.h"

namespace dwsep {

// f(pixels before them, pixels, image) for the share of every image in pixels [first, first + pixels); all of them
// where there is no gate to tell images apart.
template <class F>
void for_images(const PointwiseStage& stage, int64_t first, int64_t pixels, const F& f) {
  if (stage.gate == nullptr) return f(int64_t{0}, pixels, int64_t{0});
  for_rows_of(first, pixels, stage.image_pixels,
              [&](int64_t done, int64_t image, int64_t, int64_t run) { f(done, run, image); });
}

// Inputs, through their norm, activation and gate. `slopes`: another panel for the activation's derivatives, or null;
// without a gate, where keeps_slopes(activation). `block_stride`: floats of the panels from a block to the next, 0
// where blocks of these pixels follow one another.
inline void load_inputs(const KernelTable& table, const PointwiseStage& stage, int64_t first, int64_t pixels,
                        float* panel, float* slopes = nullptr, int64_t block_stride = 0) {
  if (block_stride == 0) block_stride = pixels * table.lanes;
  const StageLoad load = {nullptr, stage.scale, stage.shift, stage.activation};
  for_images(stage, first, pixels, [&](int64_t done, int64_t run, int64_t image) {
    load_stage_row(table, load, (first + done) * stage.x_stride, 0,
                   {stage.x, nullptr, nullptr, nullptr, Activation::kNone, stage.x_stride, run, stage.channels,
                    panel + done * table.lanes, block_stride,
                    stage.gate != nullptr ? stage.gate + image * stage.channels : nullptr, slopes});
  });
}

// Gradients of the outputs, with what comes to them through their norm's statistics.
inline void load_gradients(const KernelTable& table, const PointwiseStage& stage,
                           const PointwiseStageGradients& gradients, int64_t first, int64_t pixels, float* panel,
                           int64_t block_stride = 0) {
  if (block_stride == 0) block_stride = pixels * table.lanes;
  StageLoad load = {};
  if (gradients.correction != nullptr) {
    load = {gradients.y, gradients.correction, gradients.correction + stage.y_stride, Activation::kNone};
  }
  load_stage_row(table, load, first * stage.y_stride, 0,
                 {gradients.gradient, nullptr, nullptr, nullptr, Activation::kNone, stage.y_stride, pixels,
                  stage.out_channels, panel, block_stride});
}

}  // namespace dwsep
