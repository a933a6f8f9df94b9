#include "cpu/few_pixels_stage.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_stage_load.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

constexpr int64_t kFewPixels = 16;

// Of rows or columns of the weight, each `length` long, as many as are worth another thread.
int64_t grain(const PointwiseStage& stage, int64_t length) {
  constexpr int64_t kProducts = int64_t{1} << 19;
  return std::max<int64_t>(1, kProducts / std::max<int64_t>(1, stage.pixels * length));
}

int64_t panel_floats(const KernelTable& table, int64_t pixels, int64_t channels) {
  return ceil_div(channels, table.lanes) * pixels * table.lanes;
}

}  // namespace

bool has_few_pixels(const PointwiseStage& stage) {
  return stage.gate == nullptr && stage.pixels <= kFewPixels && stage.x_stride == stage.channels &&
         stage.y_stride == stage.out_channels;
}

void few_pixels_stage_forward(const PointwiseStage& stage, const float* bias, float* y, double* sums) {
  const KernelTable& table = kernels();
  const int64_t padded = ceil_div(stage.out_channels, table.lanes) * table.lanes;
  Layout layout;
  const int64_t panel_at = layout.add(panel_floats(table, stage.pixels, stage.channels));
  const int64_t sums_at = layout.add_doubles(2 * padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float* panel = memory + panel_at;
  load_inputs(table, stage, 0, stage.pixels, panel);
  const FewPixels job = {stage.pixels, stage.channels, stage.out_channels, panel, nullptr, stage.weight, bias, y,
                         false};
  parallel_for(stage.out_channels, grain(stage, stage.channels),
               [&](int64_t begin, int64_t end) { table.few_pixels_forward(job, begin, end); });
  auto* own = reinterpret_cast<double*>(memory + sums_at);
  std::fill_n(own, 2 * padded, 0.0);
  table.moments(y, stage.pixels, stage.out_channels, own, padded);
  add_moments(own, 1, padded, stage.out_channels, sums, stage.y_stride);
}

void few_pixels_stage_backward(const PointwiseStage& stage, const PointwiseStageGradients& gradients) {
  const KernelTable& table = kernels();
  const int64_t lanes = table.lanes, blocks = ceil_div(stage.channels, lanes), padded = blocks * lanes;
  Layout layout;
  const int64_t gradient_at = layout.add(panel_floats(table, stage.pixels, stage.out_channels));
  const int64_t panel_at = layout.add(panel_floats(table, stage.pixels, stage.channels));
  const int64_t sums_at = layout.add_doubles(2 * padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float *gradient = memory + gradient_at, *panel = memory + panel_at;
  load_gradients(table, stage, gradients, 0, stage.pixels, gradient);
  if (gradients.bias_gradient != nullptr) {
    for (int64_t k = 0; k < stage.out_channels; ++k) {
      const float* first = gradient + k / lanes * stage.pixels * lanes + k % lanes;
      float sum = 0.0f;
      for (int64_t pixel = 0; pixel < stage.pixels; ++pixel) sum += first[pixel * lanes];
      gradients.bias_gradient[k] = sum;
    }
  }
  if (gradients.weight_gradient != nullptr) {
    load_inputs(table, stage, 0, stage.pixels, panel);
    const bool stream =
        streams(gradients.weight_gradient, stage.out_channels, stage.channels, stage.channels, kTrainingStreamBytes);
    const FewPixels job = {stage.pixels, stage.channels, stage.out_channels,        panel, gradient,
                           nullptr,      nullptr,        gradients.weight_gradient, stream};
    parallel_for(stage.out_channels, grain(stage, stage.channels), [&](int64_t begin, int64_t end) {
      table.few_pixels_weights(job, begin, end);
      table.finish_streams();
    });
  }
  // Of no pixels at all there is no gradient, but its sums are zeros.
  if (gradients.x_gradient == nullptr && gradients.affine_gradient == nullptr) return;
  // The input is not needed as a panel any more.
  const FewPixels job = {stage.pixels, stage.channels, stage.out_channels, nullptr, gradient, stage.weight, nullptr,
                         panel,        false};
  parallel_for(blocks, ceil_div(grain(stage, stage.out_channels), lanes),
               [&](int64_t begin, int64_t end) { table.few_pixels_backward(job, begin, end); });
  const bool affine = stage.scale != nullptr;
  auto* sums = reinterpret_cast<double*>(memory + sums_at);
  std::fill_n(sums, 2 * padded, 0.0);
  table.stage_gradient_row({panel, lanes, stage.pixels * lanes, stage.x, stage.scale, stage.shift, stage.activation,
                            stage.x_stride, stage.pixels, stage.channels, gradients.x_gradient, false,
                            affine ? sums : nullptr, padded});
  if (gradients.affine_gradient != nullptr) {
    add_moments(sums, 1, padded, stage.channels, gradients.affine_gradient, stage.x_stride);
  }
}

}  // namespace dwsep
