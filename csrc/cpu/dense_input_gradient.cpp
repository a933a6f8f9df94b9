#include "cpu/dense_input_gradient.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/packing.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
constexpr int64_t kMostParts = 16;

// Output positions that reach `count` inputs of residues, from the number of an input on, of those that any reaches.
Range reach_of(const std::vector<AxisResidue>& residues, const std::vector<int64_t>& counts) {
  Range all = {0, 0};
  bool is_first = true;
  for (std::size_t i = 0; i < residues.size(); ++i) {
    const AxisResidue& residue = residues[i];
    if (residue.taps == 0) continue;
    const Range reached = {residue.from, residue.from + (residue.taps - 1) * residue.dilation + counts[i]};
    all = is_first ? reached : Range{std::min(all.begin, reached.begin), std::max(all.end, reached.end)};
    is_first = false;
  }
  return all;
}

}  // namespace

DenseInputGradient::DenseInputGradient(const DenseStage& stage, const DenseStageGradients& gradients)
    : table_(kernels()),
      stage_(stage),
      gradients_(gradients),
      lanes_(table_.lanes),
      outputs_(stage.problem.out_channels),
      channels_(stage.problem.channels),
      column_blocks_(ceil_div(channels_, table_.tile_columns)),
      units_(stage.problem.batch, find_classes(), kMostParts, [&](int64_t rows) { return rows_floats(rows); }) {}

// Returns how many rows a class has at most.
int64_t DenseInputGradient::find_classes() {
  const ConvAxis height = conv_axis(stage_.problem, 1), width = conv_axis(stage_.problem, 2);
  const std::vector<AxisResidue> of_height = axis_residues(height), of_width = axis_residues(width);
  std::vector<int64_t> counts;
  for (const AxisResidue& w : of_width) counts.push_back(ceil_div(width.input - w.first, width.stride));
  columns_ = reach_of(of_width, counts);
  reach_ = reach_of(of_height, std::vector<int64_t>(of_height.size(), 0));
  for (const AxisResidue& h : of_height) {
    for (std::size_t i = 0; i < of_width.size(); ++i) {
      const AxisResidue& w = of_width[i];
      const int64_t inner = h.taps * w.taps * outputs_, inner_blocks = ceil_div(inner, lanes_);
      const Operands operands = float_operands(table_, inner, channels_, stage_.rounds);
      classes_.push_back({h,
                          w,
                          counts[i],
                          {h.taps, h.dilation * row_floats(), w.taps, w.dilation, outputs_},
                          inner,
                          inner_blocks,
                          weights_floats_,
                          operands});
      most_inner_blocks_ = std::max(most_inner_blocks_, inner_blocks);
      weights_floats_ += column_blocks_ * weight_block_floats(table_, operands, inner);
    }
  }
  return ceil_div(height.input, height.stride);
}

int64_t DenseInputGradient::tile() const {
  const int64_t floats_of_pixel = most_inner_blocks_ * lanes_ + table_.tile_columns;
  return std::clamp<int64_t>(l2_cache_bytes() / 2 / (floats_of_pixel * kFloatBytes), 2 * table_.tile_pixels,
                             14 * table_.tile_pixels);
}

// Every class's weights as those of a pointwise convolution (C, taps * K).
void DenseInputGradient::pack(float* memory) const {
  const int64_t kernel_width = stage_.problem.kernel[2], row = stage_.problem.inner_channels;
  for (const Class& of : classes_) {
    if (of.inner == 0) continue;
    float* plain = scratch(Scratch::kPlainWeights, static_cast<std::size_t>(channels_ * of.inner));
    parallel_for(channels_, std::max<int64_t>(1, 16384 / of.inner), [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        float* target = plain + channel * of.inner;
        for (int64_t h = 0; h < of.height.taps; ++h) {
          for (int64_t w = 0; w < of.width.taps; ++w) {
            const int64_t tap = (of.height.last_tap - h * of.height.tap_step) * kernel_width + of.width.last_tap -
                                w * of.width.tap_step;
            const float* source = stage_.weight + tap * channels_ + channel;
            for (int64_t k = 0; k < outputs_; ++k) *target++ = source[k * row];
          }
        }
      }
    });
    pack_pointwise_blocks(table_, plain, of.inner, channels_, memory + of.weights_at, of.operands);
  }
}

// Output rows `rows` of the gradient with its correction; zeros where there are none.
void DenseInputGradient::fill_rows(int64_t image, Range rows, float* memory) const {
  const ConvProblem& p = stage_.problem;
  for (int64_t row = rows.begin; row < rows.end; ++row, memory += row_floats()) {
    if (row < 0 || row >= p.output[1]) {
      std::fill_n(memory, row_floats(), 0.0f);
      continue;
    }
    fill_padded_row(columns_, p.output[2], outputs_, memory, [&](int64_t first, int64_t count, float* target) {
      const int64_t at = ((image * p.output[1] + row) * p.output[2] + first) * outputs_;
      if (gradients_.correction != nullptr) {
        table_.corrected(gradients_.gradient + at, gradients_.y + at, gradients_.correction, count, outputs_, target);
      } else {
        std::copy_n(gradients_.gradient + at, count * outputs_, target);
      }
    });
  }
}

// The memory that a unit reads.
Prefetch DenseInputGradient::read_by(int64_t unit) const {
  if (unit >= units_.count()) return {};
  const ConvProblem& p = stage_.problem;
  const Range rows = units_.rows_of(unit);
  const auto range = [&](const float* tensor, int64_t begin, int64_t end, int axis_rows, int64_t row_length) {
    begin = std::clamp<int64_t>(begin, 0, axis_rows);
    end = std::clamp<int64_t>(end, begin, axis_rows);
    return MemoryRange{tensor + (units_.image_of(unit) * axis_rows + begin) * row_length,
                       (end - begin) * row_length * kFloatBytes};
  };
  const int64_t first = rows.begin + reach_.begin, last = rows.end + reach_.end;
  const auto of_outputs = [&](const float* tensor) {
    return range(tensor, first, last, static_cast<int>(p.output[1]), p.output[2] * outputs_);
  };
  const MemoryRange none = {nullptr, 0};
  const bool reads_x = stage_.load.scale != nullptr || stage_.load.activation != Activation::kNone;
  return {{of_outputs(gradients_.gradient), gradients_.correction != nullptr ? of_outputs(gradients_.y) : none,
           reads_x ? range(stage_.x, rows.begin * p.stride[1], rows.end * p.stride[1], static_cast<int>(p.input[1]),
                           p.input[2] * channels_)
                   : none}};
}

// Pixels [first, end) of a class's rows `rows`; `source` is what its pixel 0 reads first.
void DenseInputGradient::run_tile(const Class& of, int64_t image, Range rows, int64_t first, int64_t end,
                                  const float* source, float* memory, double* affine_sums, const Prefetch& next) const {
  const ConvProblem& p = stage_.problem;
  const StageLoad& load = stage_.load;
  const int64_t pixels = end - first, pixel_stride = p.stride[2] * channels_;
  float *panel = memory, *product = memory + most_inner_blocks_ * lanes_ * pixels;
  if (of.inner > 0) {
    for_rows_of(first, pixels, of.columns, [&](int64_t done, int64_t row, int64_t column, int64_t run) {
      table_.patch_row(of.runs.job(source + row * row_floats() + column * outputs_, outputs_, run,
                                   panel + done * lanes_, pixels * lanes_));
    });
  }
  PanelProduct job = {panel, of.inner_blocks, pixels, weights_ + of.weights_at, product, of.inner, 0, {}};
  if (of.inner > 0) {
    job.panel = last_panel_operand(table_, of.operands, panel, of.inner, pixels);
    job.operands = of.operands;
  }
  for (int64_t block = 0; block < column_blocks_; ++block) {
    const int64_t channel = block * table_.tile_columns;
    job.columns = std::min(table_.tile_columns, channels_ - channel);
    job.prefetch = share_of(next, block, column_blocks_);
    if (of.inner > 0) {
      table_.multiply_panel(job, block);
    } else {
      std::fill_n(product, table_.tile_columns * pixels, 0.0f);
    }
    for_rows_of(first, pixels, of.columns, [&](int64_t done, int64_t row, int64_t column, int64_t run) {
      const int64_t y = of.height.first + (rows.begin + row) * p.stride[1];
      const int64_t x = of.width.first + column * p.stride[2];
      const int64_t at = ((image * p.input[1] + y) * p.input[2] + x) * channels_ + channel;
      const bool affine = load.scale != nullptr;
      table_.stage_gradient_row({product + done * lanes_, lanes_, pixels * lanes_, stage_.x + at,
                                 affine ? load.scale + channel : nullptr, affine ? load.shift + channel : nullptr,
                                 load.activation, pixel_stride, run, job.columns, gradients_.x_gradient + at, stream_,
                                 affine ? affine_sums + channel : nullptr, column_blocks_ * table_.tile_columns});
    });
  }
}

void DenseInputGradient::run_part(int64_t part, float* rows_memory, float* panel, double* affine_sums) const {
  const ConvProblem& p = stage_.problem;
  const int64_t most = tile();
  const Range range = units_.units_of(part);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t image = units_.image_of(unit);
    const Range rows = units_.rows_of(unit);
    fill_rows(image, {rows.begin + reach_.begin, rows.end + reach_.end}, rows_memory);
    const Prefetch next = read_by(unit + 1);
    const auto classes = static_cast<int64_t>(classes_.size());
    for (int64_t i = 0; i < classes; ++i) {
      const Class& of = classes_[static_cast<std::size_t>(i)];
      const int64_t stop = std::min(rows.end, ceil_div(p.input[1] - of.height.first, p.stride[1]));
      const int64_t pixels = std::max<int64_t>(0, stop - rows.begin) * of.columns, tiles = ceil_div(pixels, most);
      const float* source = rows_memory;
      if (of.inner > 0) {
        source += (of.height.from - reach_.begin) * row_floats() + (of.width.from - columns_.begin) * outputs_;
      }
      for (int64_t t = 0; t < tiles; ++t) {
        run_tile(of, image, rows, pixels * t / tiles, pixels * (t + 1) / tiles, source, panel, affine_sums,
                 share_of(next, i * tiles + t, classes * tiles));
      }
    }
  }
}

void DenseInputGradient::run() {
  const int64_t padded = column_blocks_ * table_.tile_columns;
  Layout layout;
  const int64_t weights_at = layout.add(weights_floats_);
  const int64_t affine_at = layout.add_doubles(units_.parts * 2 * padded);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  pack(memory + weights_at);
  weights_ = memory + weights_at;
  const ConvProblem& p = stage_.problem;
  stream_ =
      streams(gradients_.x_gradient, p.batch * p.input[1] * p.input[2], channels_, channels_, kTrainingStreamBytes);
  auto* affine_sums = reinterpret_cast<double*>(memory + affine_at);
  std::fill_n(affine_sums, units_.parts * 2 * padded, 0.0);
  const auto panel_floats = static_cast<std::size_t>(tile() * (most_inner_blocks_ * lanes_ + table_.tile_columns));
  parallel_parts(units_.parts, [&](int64_t begin, int64_t end) {
    float* rows = scratch(Scratch::kRows, static_cast<std::size_t>(rows_floats(units_.most_rows())));
    float* panel = scratch(Scratch::kPanel, panel_floats);
    for (int64_t part = begin; part < end; ++part) run_part(part, rows, panel, affine_sums + part * 2 * padded);
    table_.finish_streams();
  });
  if (gradients_.affine_gradient != nullptr) {
    add_moments(affine_sums, units_.parts, padded, channels_, gradients_.affine_gradient, channels_);
  }
}

}  // namespace dwsep
