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
    keeps_panels_ = turn.count == 1 && keeps_panels();
  }

  const Pixels& pixels() const { return pixels_; }
  // Of all panels.
  int64_t pixel_floats() const {
    if (keeps_panels_) return lanes_ * vectors_;
    return lanes_ * (k_blocks_ + (has_slopes() ? 2 : 1) * inner_blocks_ + vectors_);
  }
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
    int64_t transposed, weights, bias, affine, gate, gradient, input, slopes;
  } at_ = {};
  // Whether the panels of all pixels are kept, so that the weight's gradient is made of them afterwards, each of its
  // elements by one thread.
  bool keeps_panels_ = false;
  const float* transposed_ = nullptr;
  float* weight_sums_ = nullptr;   // [part][input vector][k][lane]
  float* bias_sums_ = nullptr;     // [part][k]
  double* affine_sums_ = nullptr;  // [part][2][inner]
  double* gate_sums_ = nullptr;    // [part][image that the part has pixels of][inner]
  struct Panels {
    float *gradient, *input, *slopes;  // [block][pixel][lane]
    int64_t stride;                    // floats from a block to the next
  } kept_ = {};                        // of all pixels

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
  bool keeps_panels() const;
  // Those of a tile, in the thread's memory or among all.
  Panels panels_of(int64_t first, int64_t pixels, float* memory) const;
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
                 const Panels& panels, bool stream) const;
  void multiply_kept_panels() const;
  void multiply_kept_blocks(Range rows, Range vectors) const;
  void write_weight_gradient() const;
  void write_gate_gradient() const;
};

void Backward::run_tile(int64_t part, int64_t first, int64_t end, int64_t next_end, float* memory) const {
  const int64_t pixels = end - first, outputs = stage_.out_channels;
  float* product = memory;
  const Panels panels = panels_of(first, pixels, memory + vectors_ * pixels * lanes_);
  load_gradients(table_, stage_, gradients_, first, pixels, panels.gradient, panels.stride);
  if (gradients_.bias_gradient != nullptr) {
    for (int64_t block = 0; block < k_blocks_; ++block) {
      table_.sum_row(panels.gradient + block * panels.stride, pixels, bias_sums_ + part * k_padded() + block * lanes_);
    }
  }
  // Both products take about the same time, and each asks for its share of what the next tile reads.
  const int64_t multiplied = gradients_.x_gradient != nullptr ? column_blocks_ : 0;
  const bool adds_products = gradients_.weight_gradient != nullptr && !keeps_panels_;
  const int64_t shares = std::max<int64_t>(1, adds_products ? 2 * column_blocks_ : multiplied);
  // The way back through a gate needs the values before it, and makes the product of them.
  const bool passes_gate = stage_.gate != nullptr && gradients_.x_gradient != nullptr;
  if (gradients_.weight_gradient != nullptr || passes_gate) {
    PointwiseStage before = stage_;
    if (passes_gate) before.gate = nullptr;
    load_inputs(table_, before, first, pixels, panels.input, panels.slopes, panels.stride);
  }
  if (gradients_.x_gradient != nullptr) {
    const bool affine = stage_.scale != nullptr;
    const bool stream =
        streams(gradients_.x_gradient, stage_.pixels, stage_.channels, stage_.x_stride, kTrainingStreamBytes);
    PanelProduct job = {panels.gradient, k_blocks_, pixels, transposed_, product, outputs, 0, {}};
    job.panel = panel_operand(table_, operands_, panels.gradient, outputs, pixels, panels.stride);
    job.operands = operands_;
    if (operands_ == Operands::kFloats) job.block_stride = panels.stride;
    for (int64_t block = 0; block < column_blocks_; ++block) {
      const int64_t channel = block * table_.tile_columns;
      job.columns = std::min(table_.tile_columns, stage_.channels - channel);
      const int64_t ahead = next_end - end;
      job.prefetch = next_rows(end + ahead * block / shares, end + ahead * (block + 1) / shares);
      table_.multiply_panel(job, block);
      const int64_t at = first * stage_.x_stride + channel;
      if (stage_.gate != nullptr) {
        pass_gate(part, first, pixels, channel, job.columns, product, panels, stream);
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
      if (panels.slopes != nullptr) back.slopes = panels.slopes + channel / lanes_ * panels.stride;
      back.slopes_block_stride = panels.stride;
      table_.stage_gradient_row(back);
    }
  }
  if (adds_products) {
    table_.outer_product({panels.gradient, outputs, panels.input, inner_blocks_, pixels,
                          weight_sums_ + part * weight_floats(), k_padded() * lanes_, first == pixels_.begin(part),
                          next_rows(end + (next_end - end) * multiplied / shares, next_end),
                          outer_product_memory(table_, outputs, inner_blocks_, pixels, stage_.rounds), stage_.rounds,
                          ends_in_half_a_vector(table_, stage_.channels)});
  }
}

// A block of channels of a tile: its product's gradient is in `product`, its values before the gate are among the
// panels.
void Backward::pass_gate(int64_t part, int64_t first, int64_t pixels, int64_t channel, int64_t channels,
                         const float* product, const Panels& panels, bool stream) const {
  for_images(stage_, first, pixels, [&](int64_t done, int64_t run, int64_t image) {
    const int64_t slot = part * part_images() + image - pixels_.begin(part) / stage_.image_pixels;
    float* values = panels.input + channel / lanes_ * panels.stride + done * lanes_;
    table_.gate_gradient_row({product + done * lanes_, pixels * lanes_, values, panels.stride,
                              stage_.gate + image * stage_.channels + channel, run, channels,
                              gradients_.x_gradient + (first + done) * stage_.x_stride + channel, stage_.x_stride,
                              stream, gate_sums_ + slot * inner_padded() + channel});
  });
}

Backward::Panels Backward::panels_of(int64_t first, int64_t pixels, float* memory) const {
  if (keeps_panels_) {
    const int64_t at = first * lanes_;
    return {kept_.gradient + at, kept_.input + at, has_slopes() ? kept_.slopes + at : nullptr, kept_.stride};
  }
  const int64_t stride = pixels * lanes_;
  float *input = memory + k_blocks_ * stride, *slopes = input + inner_blocks_ * stride;
  return {memory, input, has_slopes() ? slopes : nullptr, stride};
}

// Where the sums of a part's products would take the cache from a tile's panels, and those of all pixels stay in the
// last one. Operands of an outer product's own would be made anew for each of its blocks.
bool Backward::keeps_panels() const {
  constexpr int64_t kPanelBytes = int64_t{8} << 20;
  if (gradients_.weight_gradient == nullptr || weight_floats() * kFloatBytes < l2_cache_bytes() / 2) return false;
  if ((k_padded() + inner_padded()) * stage_.pixels * kFloatBytes > kPanelBytes) return false;
  return table_.operands.outer_floats(stage_.out_channels, inner_blocks_, stage_.pixels, stage_.rounds) == 0;
}

// The weight's gradient from the panels of all pixels: a few rows by all columns at a time, or, where it has more
// columns than rows, as many columns as an outer product takes at once by all rows or half of them.
void Backward::multiply_kept_panels() const {
  constexpr int64_t kRowBlocks = 2, kVectors = 3, kLeastUnits = 16;
  const bool by_rows = stage_.out_channels > stage_.channels;
  const int64_t across = by_rows ? 1 : ceil_div(inner_blocks_, kVectors);
  const int64_t down = by_rows ? ceil_div(k_blocks_, kRowBlocks) : across < kLeastUnits ? 2 : 1;
  parallel_parts(across * down, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / across, column = unit % across;
      multiply_kept_blocks({k_blocks_ * row / down, k_blocks_ * (row + 1) / down},
                           {inner_blocks_ * column / across, inner_blocks_ * (column + 1) / across});
    }
    table_.finish_streams();
  });
}

// Blocks of outputs by blocks of inputs.
void Backward::multiply_kept_blocks(Range rows, Range vectors) const {
  const int64_t channels = stage_.channels, outputs = stage_.out_channels;
  const int64_t row = rows.begin * lanes_, channel = vectors.begin * lanes_;
  const int64_t row_count = std::min(rows.end * lanes_, outputs) - row;
  const int64_t stride = rows.size() * lanes_ * lanes_;
  float* sums = scratch(Scratch::kPanel, static_cast<std::size_t>(vectors.size() * stride));
  table_.outer_product({kept_.gradient + rows.begin * kept_.stride,
                        row_count,
                        kept_.input + vectors.begin * kept_.stride,
                        vectors.size(),
                        pixels_.count,
                        sums,
                        stride,
                        true,
                        {},
                        nullptr,
                        false,
                        vectors.end == inner_blocks_ && ends_in_half_a_vector(table_, channels)});
  const bool stream = streams(gradients_.weight_gradient, outputs, channels, channels, kTrainingStreamBytes);
  const int64_t columns = std::min(vectors.end * lanes_, channels) - channel;
  table_.scatter_row({ElementType::kFloat32, channels, 1, row_count, columns, stride, stream}, sums,
                     gradients_.weight_gradient + row * channels + channel);
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
  at_.weights = layout.add(keeps_panels_ ? 0 : pixels_.parts * weight_floats());
  const int64_t kept = keeps_panels_ ? pixels_.count : 0;
  at_.gradient = layout.add(kept * k_padded());
  at_.input = layout.add(kept * inner_padded());
  at_.slopes = layout.add(has_slopes() ? kept * inner_padded() : 0);
  at_.bias = layout.add(pixels_.parts * k_padded());
  at_.affine = layout.add_doubles(pixels_.parts * 2 * inner_padded());
  at_.gate = layout.add_doubles(pixels_.parts * part_images() * inner_padded());
}

void Backward::prepare(float* memory) {
  gate_sums_ = reinterpret_cast<double*>(memory + at_.gate);
  std::fill_n(gate_sums_, pixels_.parts * part_images() * inner_padded(), 0.0);
  transposed_ = memory + at_.transposed;
  weight_sums_ = memory + at_.weights;
  kept_ = {memory + at_.gradient, memory + at_.input, memory + at_.slopes, pixels_.count * lanes_};
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
  if (!keeps_panels_ && pixels_.begin(part + 1) == pixels_.begin(part)) {
    std::fill_n(weight_sums_ + part * weight_floats(), weight_floats(), 0.0f);
  }
}

void Backward::finish() const {
  if (keeps_panels_) {
    multiply_kept_panels();
  } else if (gradients_.weight_gradient != nullptr) {
    write_weight_gradient();
  }
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
