#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/few_pixels_stage.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/pointwise_stage_kernel.h"
#include "cpu/pointwise_stage_load.h"
#include "cpu/pointwise_stage_pixels.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

class Forward {
 public:
  Forward(const PointwiseStage& stage, const PointwiseStageOutputs& outputs, const Turn& turn)
      : table_(kernels()),
        stage_(stage),
        outputs_(outputs),
        turn_(turn),
        inner_blocks_(ceil_div(stage.channels, table_.lanes)),
        column_blocks_(ceil_div(stage.out_channels, table_.tile_columns)),
        operands_(float_operands(table_, stage.channels, stage.out_channels, stage.rounds)),
        stream_(streams(outputs.y, stage.pixels, stage.out_channels, stage.y_stride, kTrainingStreamBytes)) {
    const int64_t bytes_of_pixel = pixel_floats() * kFloatBytes;
    // As in the separable forward: a panel in L1 while the weights stream from L2, a larger one where they outgrow it.
    const bool large = weight_floats() * kFloatBytes > l2_cache_bytes() / 2;
    const int64_t budget = large || operands_ == Operands::kPieces ? l2_cache_bytes() / 4 : l1_cache_bytes() / 2;
    pixels_.count = stage.pixels;
    pixels_.tile = panel_pixels(table_, operands_, budget / bytes_of_pixel);
    pixels_.whole_tiles = multiplies_tiles(table_, operands_);
    pixels_.parts = std::clamp<int64_t>(stage.pixels / (2 * table_.tile_pixels), 1, 16);
  }

  const Pixels& pixels() const { return pixels_; }
  // Of a panel.
  int64_t pixel_floats() const { return inner_blocks_ * table_.lanes; }
  // Where the stage's memory lies, before it is there.
  void place(Layout& layout);
  void prepare(float* memory);
  void begin_part(int64_t part) const { std::fill_n(sums_ + part * 2 * k_padded(), 2 * k_padded(), 0.0); }
  // Pixels [first, end); what comes next ends at `next_end`.
  void run_tile(int64_t part, int64_t first, int64_t end, int64_t next_end, float* panel) const;
  void finish() const {
    add_moments(sums_, pixels_.parts, k_padded(), stage_.out_channels, outputs_.sums, stage_.y_stride);
  }

 private:
  const KernelTable& table_;
  const PointwiseStage& stage_;
  const PointwiseStageOutputs& outputs_;
  Turn turn_;
  int64_t inner_blocks_;   // of the inputs, a vector each
  int64_t column_blocks_;  // of the outputs, a micro-kernel's columns each
  Operands operands_;
  bool stream_;
  Pixels pixels_{};
  struct {
    int64_t weights, bias, sums;
  } at_ = {};
  const float *weights_ = nullptr, *bias_ = nullptr;
  double* sums_ = nullptr;  // [part][2][output, padded]

  int64_t k_padded() const { return column_blocks_ * table_.tile_columns; }
  int64_t weight_floats() const { return column_blocks_ * weight_block_floats(table_, operands_, stage_.channels); }
};

void Forward::place(Layout& layout) {
  at_.weights = layout.add(weight_floats());
  at_.bias = layout.add(k_padded());
  at_.sums = layout.add_doubles(pixels_.parts * 2 * k_padded());
}

void Forward::prepare(float* memory) {
  float* bias = memory + at_.bias;
  weights_ = memory + at_.weights;
  bias_ = bias;
  sums_ = reinterpret_cast<double*>(memory + at_.sums);
  pack_pointwise_blocks(table_, stage_.weight, stage_.channels, stage_.out_channels, memory + at_.weights, operands_);
  std::fill_n(bias, k_padded(), 0.0f);
  if (outputs_.bias != nullptr) std::copy_n(outputs_.bias, stage_.out_channels, bias);
}

void Forward::run_tile(int64_t part, int64_t first, int64_t end, int64_t next_end, float* panel) const {
  const int64_t count = end - first;
  load_inputs(table_, stage_, first, count, panel);
  const MemoryRange next =
      turn_.count > 1 ? turn_.rows(turn_.x, stage_.x_stride, end, next_end) : input_rows(stage_, end, next_end);
  table_.pointwise_stage_tile({last_panel_operand(table_, operands_, panel, stage_.channels, count),
                               stage_.channels,
                               count,
                               stage_.out_channels,
                               weights_,
                               bias_,
                               outputs_.y + first * stage_.y_stride,
                               stage_.y_stride,
                               sums_ + part * 2 * k_padded(),
                               k_padded(),
                               stream_,
                               {{next}},
                               operands_});
}

}  // namespace

void pointwise_stage_forward(const PointwiseStage& stage, const float* bias, float* y, double* sums) {
  const PointwiseStageOutputs outputs = {bias, y, sums};
  pointwise_stages_forward({&stage, 1}, {&outputs, 1});
}

void pointwise_stages_forward(std::span<const PointwiseStage> stages, std::span<const PointwiseStageOutputs> outputs) {
  if (!has_few_pixels(stages[0])) return run_in_turns<Forward>(stages, outputs, {});
  for (std::size_t i = 0; i < stages.size(); ++i) {
    few_pixels_stage_forward(stages[i], outputs[i].bias, outputs[i].y, outputs[i].sums);
  }
}

}  // namespace dwsep
