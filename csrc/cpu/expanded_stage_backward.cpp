#include "cpu/expanded_stage_backward.h"

#include <algorithm>
#include <vector>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/pointwise_stage_load.h"
#include "cpu/row_units.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

}  // namespace

ExpandedStageBackward::ExpandedStageBackward(const PointwiseStage& expand, float* x_gradient)
    : table_(kernels()),
      expand_(expand),
      x_gradient_(x_gradient),
      lanes_(table_.lanes),
      blocks_(ceil_div(expand.channels, lanes_)),
      out_blocks_(ceil_div(expand.out_channels, lanes_)),
      operands_(float_operands(table_, expand.out_channels, expand.channels, expand.rounds)),
      centred_(expand) {}

int64_t ExpandedStageBackward::column_blocks() const { return ceil_div(expand_.channels, table_.tile_columns); }

bool ExpandedStageBackward::pays(const RowsPlan& plan, int64_t channels) {
  if (!fits(plan)) return false;
  // The products of the inputs among each other must be few against those with the outputs.
  constexpr int64_t kLeastExpansion = 3;
  if (plan.problem.channels < kLeastExpansion * channels) return false;
  // Measured: what stays in the last cache is read again at little cost, and a working set that leaves no room in the
  // second costs more than memory does.
  constexpr int64_t kLeastBytes = int64_t{8} << 20;
  const int64_t pixels = plan.together * plan.height.stride * plan.width.input;
  const int64_t rows = plan.inputs.block_floats() + plan.gradients.block_floats() + pixels * plan.lanes;
  const int64_t floats = plan.blocks * rows + 2 * plan.padded() * channels;
  const int64_t elements = plan.problem.batch * plan.height.input * plan.width.input * plan.problem.channels;
  return elements * kFloatBytes >= kLeastBytes && floats * kFloatBytes <= l2_cache_bytes() * 3 / 4;
}

void ExpandedStageBackward::place() {
  Layout layout;
  const int64_t columns = column_blocks() * table_.tile_columns;
  const int64_t transposed_at =
      layout.add(column_blocks() * weight_block_floats(table_, operands_, expand_.out_channels));
  const int64_t zeros_at = layout.add(columns);
  const int64_t centre_at = layout.add(padded()), scale_at = layout.add(padded()), shift_at = layout.add(padded());
  const int64_t products_at = layout.add(parts_ * products_floats());
  const int64_t squares_at = layout.add(parts_ * squares_floats());
  const int64_t inputs_at = layout.add_doubles(parts_ * padded());
  float* memory = scratch(Scratch::kPlanes, static_cast<std::size_t>(layout.size()));
  transposed_ = memory + transposed_at;
  zeros_ = memory + zeros_at;
  centre_ = memory + centre_at;
  products_ = memory + products_at;
  squares_ = memory + squares_at;
  inputs_ = reinterpret_cast<double*>(memory + inputs_at);
  std::fill(zeros_, memory + layout.size(), 0.0f);
  find_centre();
  float *scale = memory + scale_at, *shift = memory + shift_at;
  for (int64_t c = 0; c < expand_.channels; ++c) {
    scale[c] = expand_.scale != nullptr ? expand_.scale[c] : 1.0f;
    shift[c] = (expand_.scale != nullptr ? expand_.shift[c] : 0.0f) - centre_[c];
  }
  centred_.scale = scale;
  centred_.shift = shift;
}

// A mean of some pixels. What is far from zero for all pixels would be lost in the rounding of sums of squares, and the
// gradients are the same whatever is taken off.
void ExpandedStageBackward::find_centre() {
  constexpr int64_t kSamples = 64;
  const int64_t samples = std::min(kSamples, expand_.pixels);
  for (int64_t i = 0; i < samples; ++i) {
    const float* x = expand_.x + expand_.pixels * i / samples * expand_.x_stride;
    for (int64_t c = 0; c < expand_.channels; ++c) centre_[c] += x[c];
  }
  for (int64_t c = 0; c < expand_.channels; ++c) {
    const float mean = centre_[c] / static_cast<float>(samples);
    centre_[c] = expand_.scale != nullptr ? expand_.scale[c] * mean + expand_.shift[c] : mean;
  }
}

void ExpandedStageBackward::run(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                                const DepthwiseBackwardTensors& tensors) {
  parts_ = plan.parts();
  place();
  if (x_gradient_ != nullptr) {
    pack_pointwise_transposed(table_, expand_.weight, expand_.channels, expand_.out_channels, transposed_, operands_);
  }
  depthwise_rows_backward(plan, weights, stage, tensors, this);
}

void ExpandedStageBackward::take(int64_t part, int64_t first, int64_t pixels, const float* panel, float* memory,
                                 const Prefetch& next) const {
  load_inputs(table_, centred_, first, pixels, memory);
  if (x_gradient_ != nullptr) {
    table_.pointwise_tile({panel_operand(table_, operands_, panel, expand_.out_channels, pixels), 0,
                           expand_.out_channels, pixels, expand_.channels, transposed_, zeros_, Activation::kNone,
                           nullptr, x_gradient_ + first * expand_.channels, 0, column_blocks(), share_of(next, 0, 2),
                           operands_});
  }
  table_.outer_product({memory, expand_.channels, panel, out_blocks_, pixels, products_ + part * products_floats(),
                        padded() * lanes_, false, share_of(next, x_gradient_ != nullptr ? 1 : 0, 2),
                        outer_product_memory(table_, expand_.channels, out_blocks_, pixels, expand_.rounds),
                        expand_.rounds, ends_in_half_a_vector(table_, expand_.out_channels)});
  table_.outer_product({memory,
                        expand_.channels,
                        memory,
                        blocks_,
                        pixels,
                        squares_ + part * squares_floats(),
                        padded() * lanes_,
                        false,
                        {},
                        outer_product_memory(table_, expand_.channels, blocks_, pixels),
                        false,
                        ends_in_half_a_vector(table_, expand_.channels)});
  for (int64_t block = 0; block < blocks_; ++block) {
    constexpr int64_t kMostLanes = 16;
    alignas(64) float sums[kMostLanes] = {};
    table_.sum_row(memory + block * pixels * lanes_, pixels, sums);
    double* totals = inputs_ + part * padded() + block * lanes_;
    for (int64_t lane = 0; lane < lanes_; ++lane) totals[lane] += static_cast<double>(sums[lane]);
  }
}

void ExpandedStageBackward::expect(RowsAhead& ahead, int64_t first, int64_t pixels) const {
  ahead.add(expand_.x + first * expand_.x_stride, 1, 0, pixels * expand_.x_stride * kFloatBytes);
}

float ExpandedStageBackward::product(int64_t output, int64_t input) const {
  const float* place = products_ + output / lanes_ * padded() * lanes_ + input * lanes_ + output % lanes_;
  float sum = 0.0f;
  for (int64_t part = 0; part < parts_; ++part) sum += place[part * products_floats()];
  return sum;
}

double ExpandedStageBackward::square(int64_t input, int64_t other) const {
  const float* place = squares_ + input / lanes_ * padded() * lanes_ + other * lanes_ + input % lanes_;
  double sum = 0.0;
  for (int64_t part = 0; part < parts_; ++part) sum += static_cast<double>(place[part * squares_floats()]);
  return sum;
}

std::vector<double> ExpandedStageBackward::input_sums() const {
  std::vector<double> sums(static_cast<std::size_t>(expand_.channels));
  for (int64_t part = 0; part < parts_; ++part) {
    for (int64_t i = 0; i < expand_.channels; ++i) sums[static_cast<std::size_t>(i)] += inputs_[part * padded() + i];
  }
  return sums;
}

void ExpandedStageBackward::write_weight_gradient(const float* correction, const std::vector<double>& sums,
                                                  float* weight_gradient) const {
  const int64_t n = expand_.channels, outputs = expand_.out_channels;
  std::vector<double> squares(static_cast<std::size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) squares[static_cast<std::size_t>(i * n + j)] = square(i, j);
  }
  parallel_for(outputs, std::max<int64_t>(1, 16384 / (n * n)), [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<std::size_t>(n));
    for (int64_t k = begin; k < end; ++k) {
      const float* weight = expand_.weight + k * n;
      const auto slope = static_cast<double>(correction[k]);
      double constant = static_cast<double>(correction[outputs + k]);
      for (int64_t i = 0; i < n; ++i) {
        constant += slope * static_cast<double>(weight[i]) * static_cast<double>(centre_[i]);
      }
      for (int64_t j = 0; j < n; ++j) {
        row[static_cast<std::size_t>(j)] = constant * sums[static_cast<std::size_t>(j)];
      }
      for (int64_t i = 0; i < n; ++i) {
        const double factor = slope * static_cast<double>(weight[i]);
        const double* from = squares.data() + i * n;
        for (int64_t j = 0; j < n; ++j) row[static_cast<std::size_t>(j)] += factor * from[j];
      }
      for (int64_t j = 0; j < n; ++j) {
        weight_gradient[k * n + j] =
            static_cast<float>(static_cast<double>(product(k, j)) + row[static_cast<std::size_t>(j)]);
      }
    }
  });
}

// x's gradient is W^T g so far: adds W^T (a W z + b), and takes the sum through the stage of x.
void ExpandedStageBackward::add_correction(const StageBackward& stage, const float* correction,
                                           const std::vector<double>& sums, double* affine_gradient) const {
  const int64_t n = expand_.channels, outputs = expand_.out_channels;
  std::vector<float> matrix(static_cast<std::size_t>(n * n));
  std::vector<double> constants(static_cast<std::size_t>(n));
  const auto pixels = static_cast<double>(expand_.pixels);
  parallel_for(n, std::max<int64_t>(1, 16384 / (n * outputs)), [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<std::size_t>(n));
    for (int64_t i = begin; i < end; ++i) {
      std::fill(row.begin(), row.end(), 0.0);
      // Gradients before a norm of the batch's statistics sum to zero: the constant is what makes them.
      double sum = 0.0;
      for (int64_t k = 0; k < outputs; ++k) {
        const float* weight = expand_.weight + k * n;
        const double factor = static_cast<double>(weight[i]) * static_cast<double>(correction[k]);
        for (int64_t j = 0; j < n; ++j) row[static_cast<std::size_t>(j)] += factor * static_cast<double>(weight[j]);
        sum += static_cast<double>(weight[i]) * static_cast<double>(stage.scale[k]) *
               stage.affine_gradient[stage.row_length + k];
      }
      for (int64_t j = 0; j < n; ++j) {
        const auto value = static_cast<float>(row[static_cast<std::size_t>(j)]);
        matrix[static_cast<std::size_t>(i * n + j)] = value;
        sum += static_cast<double>(value) * sums[static_cast<std::size_t>(j)];
      }
      constants[static_cast<std::size_t>(i)] = -sum / pixels;
    }
  });
  const int64_t columns = column_blocks() * table_.tile_columns;
  // Tiles of pixels whose panel stays in L1, in parts that have sums of their own.
  const Operands operands = float_operands(table_, n, n);
  const int64_t fit = std::max<int64_t>(2 * table_.tile_pixels, 8192 / padded());
  const int64_t tile = operands == Operands::kPieces ? panel_pixels(table_, operands, 4 * fit) : fit;
  const int64_t tiles = ceil_div(expand_.pixels, tile), parts = std::min<int64_t>(16, tiles);
  Layout layout;
  const int64_t weights_at = layout.add(column_blocks() * weight_block_floats(table_, operands, n));
  const int64_t bias_at = layout.add(columns);
  const int64_t affine_at = layout.add_doubles(parts * 2 * padded());
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  pack_pointwise_blocks(table_, matrix.data(), n, n, memory + weights_at, operands);
  float* bias = memory + bias_at;
  std::fill_n(bias, columns, 0.0f);
  for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(constants[static_cast<std::size_t>(i)]);
  auto* affine_sums = reinterpret_cast<double*>(memory + affine_at);
  std::fill_n(affine_sums, parts * 2 * padded(), 0.0);
  parallel_parts(parts, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * padded()));
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t i = tiles * part / parts; i < tiles * (part + 1) / parts; ++i) {
        const int64_t first = i * tile, count = std::min(tile, expand_.pixels - first);
        float* gradient = x_gradient_ + first * n;
        load_inputs(table_, centred_, first, count, panel);
        table_.pointwise_tile({panel_operand(table_, operands, panel, n, count),
                               0,
                               n,
                               count,
                               n,
                               memory + weights_at,
                               bias,
                               Activation::kNone,
                               gradient,
                               gradient,
                               0,
                               column_blocks(),
                               {},
                               operands});
        if (expand_.scale == nullptr) continue;
        table_.stage_gradient_row({gradient, n, lanes_, expand_.x + first * expand_.x_stride, expand_.scale,
                                   expand_.shift, Activation::kNone, n, count, n, gradient, false,
                                   affine_sums + part * 2 * padded(), padded()});
      }
    }
  });
  if (affine_gradient != nullptr) add_moments(affine_sums, parts, padded(), n, affine_gradient, n);
}

void ExpandedStageBackward::finish(const StageBackward& stage, const float* correction, double* affine_gradient,
                                   float* weight_gradient) {
  const std::vector<double> sums = input_sums();
  write_weight_gradient(correction, sums, weight_gradient);
  if (x_gradient_ != nullptr) add_correction(stage, correction, sums, affine_gradient);
}

}  // namespace dwsep
