// How a pointwise stage brings pixels into panels [channel block][pixel][lane].
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/pointwise_stage_kernel.h"
#include "cpu/stage_load.h"

namespace dwsep {

// Inputs, through their norm and activation.
inline void load_inputs(const KernelTable& table, const PointwiseStage& stage, int64_t first, int64_t pixels,
                        float* panel) {
  const StageLoad load = {nullptr, stage.scale, stage.shift, stage.activation};
  load_stage_row(table, load, first * stage.x_stride, 0,
                 {stage.x, nullptr, nullptr, nullptr, Activation::kNone, stage.x_stride, pixels, stage.channels, panel,
                  pixels * table.lanes});
}

// Gradients of the outputs, with what comes to them through their norm's statistics.
inline void load_gradients(const KernelTable& table, const PointwiseStage& stage,
                           const PointwiseStageGradients& gradients, int64_t first, int64_t pixels, float* panel) {
  StageLoad load = {};
  if (gradients.correction != nullptr) {
    load = {gradients.y, gradients.correction, gradients.correction + stage.y_stride, Activation::kNone};
  }
  load_stage_row(table, load, first * stage.y_stride, 0,
                 {gradients.gradient, nullptr, nullptr, nullptr, Activation::kNone, stage.y_stride, pixels,
                  stage.out_channels, panel, pixels * table.lanes});
}

}  // namespace dwsep
