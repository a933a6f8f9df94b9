#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/few_pixels_stage.h"
#include "cpu/isa.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/pointwise_stage_kernel.h"
#include "cpu/pointwise_stage_load.h"
#include "cpu/pointwise_stage_pixels.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

class Backward {
 public:
  Backward(const PointwiseStage& stage, const PointwiseStageGradients& gradients, const Turn& turn)
      : table_(kernels()),
        stage_(stage),
        gradients_(gradients),
        turn_(turn),
        lanes_(table_.lanes),
        k_blocks_(ceil_div(stage.out_channels, lanes_)),
        inner_blocks_(ceil_div(stage.channels, lanes_)),
        column_blocks_(ceil_div(stage.channels, table_.tile_columns)),
        vectors_(table_.tile_columns / lanes_),
        operands_(float_operands(table_, stage.out_channels, stage.channels, stage.rounds)) {
    const int64_t bytes_of_pixel = (k_blocks_ + (has_slopes() ? 2 : 1) * inner_blocks_) * lanes_ * kFloatBytes;
    const int64_t fit = l2_cache_bytes() / 2 / bytes_of_pixel;
    pixels_.tile = panel_pixels(table_, operands_, fit);
    pixels_.whole_tiles = multiplies_tiles(table_, operands_);
    pixels_.count = stage.pixels;
    pixels_.parts = 2;
    while (pixels_.parts < 8 && pixels_.parts * 256 < stage.pixels) pixels_.parts *= 2;
  }

  const Pixels& pixels() const { return pixels_; }
  // Of all panels.
  int64_t pixel_floats() const { return lanes_ * (k_blocks_ + (has_slopes() ? 2 : 1) * inner_blocks_ + vectors_); }
  // Where the stage's memory lies, before it is there.
  void place(Layout& layout);
  void prepare(float* memory);
  void begin_part(int64_t part) const;
  // Pixels [first, end); what comes next ends at `next_end`.
  void run_tile(int64_t part, int64_t first, int64_t end, int64_t next_end, float* memory) const;
  void finish() const;

 private:
  const KernelTable& table_;
  const PointwiseStage& stage_;
  const PointwiseStageGradients& gradients_;
  Turn turn_;
  int64_t lanes_;
  int64_t k_blocks_;       // of the outputs, a vector each
  int64_t inner_blocks_;   // of the inputs
  int64_t column_blocks_;  // of the inputs, a micro-kernel's columns each
  int64_t vectors_;        // of a column block
  Operands operands_;      // of the product with the weights
  Pixels pixels_{};
  struct {
    int64_t transposed, weights, bias, affine, gate;
  } at_ = {};
  const float* transposed_ = nullptr;
  float* weight_sums_ = nullptr;   // [part][input vector][k][lane]
  float* bias_sums_ = nullptr;     // [part][k]
  double* affine_sums_ = nullptr;  // [part][2][inner]
  double* gate_sums_ = nullptr;    // [part][image that the part has pixels of][inner]

  // Whether the activation's derivatives are computed with its values, which the weight's gradient needs.
  bool has_slopes() const {
    return keeps_slopes(stage_.activation) && stage_.gate == nullptr && gradients_.x_gradient != nullptr &&
           gradients_.weight_gradient != nullptr;
  }
  int64_t k_padded() const { return k_blocks_ * lanes_; }
  int64_t inner_padded() const { return inner_blocks_ * lanes_; }
  // Images of which a part has pixels, at most.
  int64_t part_images() const {
    return stage_.gate != nullptr ? ceil_div(ceil_div(pixels_.count, pixels_.parts), stage_.image_pixels) + 1 : 0;
  }
  int64_t weight_floats() const { return gradients_.weight_gradient != nullptr ? k_padded() * inner_padded() : 0; }
  // What the pixels [begin, end) are read from.
  Prefetch next_rows(int64_t begin, int64_t end) const {
    const int64_t outputs = stage_.out_channels, stride = stage_.y_stride;
    const bool corrected = gradients_.correction != nullptr;
    if (turn_.count > 1) {
      return {{turn_.rows(turn_.gradient, stride, begin, end),
               turn_.rows(turn_.y, stride, begin, corrected ? end : begin),
               turn_.rows(turn_.x, stage_.x_stride, begin, end)}};
    }
    return {{rows(gradients_.gradient, outputs, stride, begin, end),
             rows(gradients_.y, outputs, stride, begin, corrected ? end : begin), input_rows(stage_, begin, end)}};
  }
  void pass_gate(int64_t part, int64_t first, int64_t pixels, int64_t channel, int64_t channels, const float* product,
                 float* input, bool stream) const;
  void write_weight_gradient() const;
  void write_gate_gradient() const;
};

void Backward::run_tile(int64_t part, int64_t first, int64_t end, int64_t next_end, float* memory) const {
  const int64_t pixels = end - first;
  float* gradient = memory;
  float* input = gradient + k_blocks_ * pixels * lanes_;
  float* product = input + inner_blocks_ * pixels * lanes_;
  float* slopes = has_slopes() ? product + vectors_ * pixels * lanes_ : nullptr;
  const int64_t outputs = stage_.out_channels;
  load_gradients(table_, stage_, gradients_, first, pixels, gradient);
  if (gradients_.bias_gradient != nullptr) {
    for (int64_t block = 0; block < k_blocks_; ++block) {
      table_.sum_row(gradient + block * pixels * lanes_, pixels, bias_sums_ + part * k_padded() + block * lanes_);
    }
  }
  // Both products take about the same time, and each asks for its share of what the next tile reads.
  const int64_t multiplied = gradients_.x_gradient != nullptr ? column_blocks_ : 0;
  const int64_t shares = std::max<int64_t>(1, gradients_.weight_gradient != nullptr ? 2 * column_blocks_ : multiplied);
  // The way back through a gate needs the values before it, and makes the product of them.
  const bool passes_gate = stage_.gate != nullptr && gradients_.x_gradient != nullptr;
  if (gradients_.weight_gradient != nullptr || passes_gate) {
    PointwiseStage before = stage_;
    if (passes_gate) before.gate = nullptr;
    load_inputs(table_, before, first, pixels, input, slopes);
  }
  if (gradients_.x_gradient != nullptr) {
    const bool affine = stage_.scale != nullptr;
    const bool stream =
        streams(gradients_.x_gradient, stage_.pixels, stage_.channels, stage_.x_stride, kTrainingStreamBytes);
    PanelProduct job = {gradient, k_blocks_, pixels, transposed_, product, outputs, 0, {}};
    job.panel = panel_operand(table_, operands_, gradient, outputs, pixels);
    job.operands = operands_;
    for (int64_t block = 0; block < column_blocks_; ++block) {
      const int64_t channel = block * table_.tile_columns;
      job.columns = std::min(table_.tile_columns, stage_.channels - channel);
      const int64_t ahead = next_end - end;
      job.prefetch = next_rows(end + ahead * block / shares, end + ahead * (block + 1) / shares);
      table_.multiply_panel(job, block);
      const int64_t at = first * stage_.x_stride + channel;
      if (stage_.gate != nullptr) {
        pass_gate(part, first, pixels, channel, job.columns, product, input, stream);
        continue;
      }
      StageGradientRow back = {product,
                               lanes_,
                               pixels * lanes_,
                               stage_.x + at,
                               affine ? stage_.scale + channel : nullptr,
                               affine ? stage_.shift + channel : nullptr,
                               stage_.activation,
                               stage_.x_stride,
                               pixels,
                               job.columns,
                               gradients_.x_gradient + at,
                               stream,
                               affine ? affine_sums_ + 2 * part * inner_padded() + channel : nullptr,
                               inner_padded()};
      if (slopes != nullptr) back.slopes = slopes + channel * pixels;
      back.slopes_block_stride = pixels * lanes_;
      table_.stage_gradient_row(back);
    }
  }
  if (gradients_.weight_gradient != nullptr) {
    table_.outer_product({gradient, outputs, input, inner_blocks_, pixels, weight_sums_ + part * weight_floats(),
                          k_padded() * lanes_, first == pixels_.begin(part),
                          next_rows(end + (next_end - end) * multiplied / shares, next_end),
                          outer_product_memory(table_, outputs, inner_blocks_, pixels, stage_.rounds), stage_.rounds});
  }
}

// A block of channels of a tile: its product's gradient is in `product`, its values before the gate are in `input`.
void Backward::pass_gate(int64_t part, int64_t first, int64_t pixels, int64_t channel, int64_t channels,
                         const float* product, float* input, bool stream) const {
  for_images(stage_, first, pixels, [&](int64_t done, int64_t run, int64_t image) {
    const int64_t slot = part * part_images() + image - pixels_.begin(part) / stage_.image_pixels;
    table_.gate_gradient_row({product + done * lanes_, input + channel * pixels + done * lanes_, pixels * lanes_,
                              stage_.gate + image * stage_.channels + channel, run, channels,
                              gradients_.x_gradient + (first + done) * stage_.x_stride + channel, stage_.x_stride,
                              stream, gate_sums_ + slot * inner_padded() + channel});
  });
}

// A vector of inputs lies together in the sums, an output's in the gradient: a few outputs of every vector at a time,
// so that either side is read and written a few cache lines at a stretch.
void Backward::write_weight_gradient() const {
  constexpr int64_t kOutputs = 8;
  const int64_t outputs = stage_.out_channels, channels = stage_.channels;
  const int64_t grain = std::max<int64_t>(1, 16384 / (kOutputs * inner_padded()));
  parallel_for(ceil_div(outputs, kOutputs), grain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kOutputs; first < std::min(outputs, end * kOutputs); first += kOutputs) {
      const int64_t stop = std::min(first + kOutputs, outputs);
      for (int64_t channel = 0; channel < channels; channel += lanes_) {
        for (int64_t k = first; k < stop; ++k) {
          sum_of_parts(weight_sums_ + channel * k_padded() + k * lanes_, pixels_.parts, weight_floats(),
                       std::min(lanes_, channels - channel), gradients_.weight_gradient + k * channels + channel);
        }
      }
    }
  });
}

// Of an image's parts in their order.
void Backward::write_gate_gradient() const {
  const int64_t per_image = stage_.image_pixels;
  for (int64_t image = 0; image < pixels_.count / per_image; ++image) {
    double* total = nullptr;
    for (int64_t part = 0; part < pixels_.parts; ++part) {
      if (pixels_.begin(part) >= (image + 1) * per_image || pixels_.begin(part + 1) <= image * per_image) continue;
      double* sums = gate_sums_ + (part * part_images() + image - pixels_.begin(part) / per_image) * inner_padded();
      if (total == nullptr) {
        total = sums;
        continue;
      }
      for (int64_t channel = 0; channel < stage_.channels; ++channel) total[channel] += sums[channel];
    }
    float* target = gradients_.gate_gradient + image * stage_.channels;
    for (int64_t channel = 0; channel < stage_.channels; ++channel)
      target[channel] = static_cast<float>(total[channel]);
  }
}

void Backward::place(Layout& layout) {
  at_.transposed = layout.add(column_blocks_ * weight_block_floats(table_, operands_, stage_.out_channels));
  at_.weights = layout.add(pixels_.parts * weight_floats());
  at_.bias = layout.add(pixels_.parts * k_padded());
  at_.affine = layout.add_doubles(pixels_.parts * 2 * inner_padded());
  at_.gate = layout.add_doubles(pixels_.parts * part_images() * inner_padded());
}

void Backward::prepare(float* memory) {
  gate_sums_ = reinterpret_cast<double*>(memory + at_.gate);
  std::fill_n(gate_sums_, pixels_.parts * part_images() * inner_padded(), 0.0);
  transposed_ = memory + at_.transposed;
  weight_sums_ = memory + at_.weights;
  bias_sums_ = memory + at_.bias;
  affine_sums_ = reinterpret_cast<double*>(memory + at_.affine);
  if (gradients_.x_gradient != nullptr) {
    pack_pointwise_transposed(table_, stage_.weight, stage_.channels, stage_.out_channels, memory + at_.transposed,
                              operands_);
  }
}

void Backward::begin_part(int64_t part) const {
  std::fill_n(bias_sums_ + part * k_padded(), k_padded(), 0.0f);
  std::fill_n(affine_sums_ + 2 * part * inner_padded(), 2 * inner_padded(), 0.0);
  // A part without pixels writes no sums.
  if (pixels_.begin(part + 1) == pixels_.begin(part)) {
    std::fill_n(weight_sums_ + part * weight_floats(), weight_floats(), 0.0f);
  }
}

void Backward::finish() const {
  if (gradients_.weight_gradient != nullptr) write_weight_gradient();
  for (int64_t k = 0; gradients_.bias_gradient != nullptr && k < stage_.out_channels; ++k) {
    float sum = 0.0f;
    for (int64_t part = 0; part < pixels_.parts; ++part) sum += bias_sums_[part * k_padded() + k];
    gradients_.bias_gradient[k] = sum;
  }
  if (gradients_.gate_gradient != nullptr) write_gate_gradient();
  if (gradients_.affine_gradient != nullptr) {
    add_moments(affine_sums_, pixels_.parts, inner_padded(), stage_.channels, gradients_.affine_gradient,
                stage_.x_stride);
  }
}

}  // namespace

void pointwise_stage_backward(const PointwiseStage& stage, const PointwiseStageGradients& gradients) {
  pointwise_stages_backward({&stage, 1}, {&gradients, 1});
}

void pointwise_stages_backward(std::span<const PointwiseStage> stages,
                               std::span<const PointwiseStageGradients> gradients) {
  if (!has_few_pixels(stages[0])) {
    return run_in_turns<Backward>(stages, gradients, {.gradient = gradients[0].gradient, .y = gradients[0].y});
  }
  for (std::size_t i = 0; i < stages.size(); ++i) few_pixels_stage_backward(stages[i], gradients[i]);
}

}  // namespace dwsep
