#include "cpu/depthwise_bands.h"

#include <cstring>

#include "cpu/elements.h"
#include "cpu/plane_plan.h"

namespace dwsep {
namespace {

PlaneConv on_rows(const PlaneRows& rows, int64_t block) {
  PlaneConv job = {};
  job.plane = rows.first + block * rows.block_stride;
  job.row_stride = rows.row_stride;
  job.rows = rows.end - rows.begin;
  job.row_offsets = rows.offsets;
  job.slices = rows.slices;
  job.slice_count = rows.slice_count;
  return job;
}

}  // namespace

std::vector<AxisResidue> axis_residues(const ConvAxis& axis) {
  std::vector<AxisResidue> residues;
  for (int64_t first = 0; first < std::min(axis.stride, axis.input); ++first) {
    AxisResidue residue = {first, 0, 0, 0, 0, 1};
    for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
      const int64_t before = first + axis.pad_low - tap * axis.dilation;
      if (floor_div(before, axis.stride) * axis.stride != before) continue;
      if (residue.taps == 0) {
        residue.last_tap = tap;
        residue.from = before / axis.stride;
      } else if (residue.taps == 1) {
        residue.tap_step = residue.last_tap - tap;
        residue.dilation = before / axis.stride - residue.from;
      }
      ++residue.taps;
    }
    residues.push_back(residue);
  }
  return residues;
}

Range input_columns(const ConvAxis& axis) {
  return {std::min<int64_t>(0, axis.position(0, 0)),
          std::max(axis.input, axis.position(axis.output - 1, axis.kernel - 1) + 1)};
}

Range gradient_columns(const ConvAxis& axis) {
  const int64_t first = floor_div(axis.pad_low - (axis.kernel - 1) * axis.dilation, axis.stride);
  const int64_t last = floor_div(axis.input - 1 + axis.pad_low, axis.stride);
  return {std::min<int64_t>(0, first), std::max(axis.output, last + 1)};
}

bool has_two_axes(const ConvProblem& problem) {
  return problem.input[0] == 1 && problem.output[0] == 1 && problem.kernel[0] == 1 && problem.pad_low[0] == 0;
}

BandPlan::BandPlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : table(kernels),
      problem(of),
      depth(conv_axis(of, 0)),
      height(conv_axis(of, 1)),
      width(conv_axis(of, 2)),
      lanes(kernels.lanes),
      blocks(ceil_div(of.channels, kernels.lanes)),
      pairs(takes_pairs(kernels, of.element_type == ElementType::kBFloat16 && of.kernel[2] > 1)),
      row_weights(pairs ? ceil_div(of.kernel[2], 2) : of.kernel[2]) {
  if (!backward) return;
  height_residues = axis_residues(height);
  width_residues = axis_residues(width);
}

void BandPlan::limit_parts(int64_t pixels) {
  constexpr int64_t kPartPixels = 128, kUnits = 16, kWideFloats = 128;
  most_parts = std::clamp<int64_t>(pixels / kPartPixels, 1, most_parts);
  group = std::min(group, std::max(kWideFloats / lanes, blocks * parts() / kUnits));
  group = ceil_div(blocks, ceil_div(blocks, group));
}

void BandPlan::pack(const WeightSources& sources, float* memory) {
  float* biases = memory + blocks * taps() * lanes;
  weights = memory;
  bias = biases;
  pack_for_planes(problem, lanes, sources, memory, biases);
  if (pairs) pack_pairs(memory);
  if (!is_backward()) return;
  residue_weights = biases + blocks * lanes;
  pack_residues(biases + blocks * lanes);
}

// In place, row by row: no pair lies behind what it is made of.
void BandPlan::pack_pairs(float* target) const {
  const float* from = target;
  for (int64_t row = 0; row < blocks * depth.kernel * height.kernel; ++row) {
    for (int64_t tap = 0; tap < width.kernel; tap += 2) {
      for (int64_t lane = 0; lane < lanes; ++lane, ++from, ++target) {
        uint32_t low, high = 0;
        std::memcpy(&low, from, sizeof low);
        if (tap + 1 < width.kernel) std::memcpy(&high, from + lanes, sizeof high);
        const uint32_t pair = low >> 16 | (high & 0xffff0000u);
        std::memcpy(target, &pair, sizeof pair);
      }
      if (tap + 1 < width.kernel) from += lanes;
    }
  }
}

void BandPlan::pack_residues(float* target) const {
  const int64_t floats = slice_taps() * lanes;
  for (int64_t slice = 0; slice < blocks * depth.kernel; ++slice) {
    const float* from = weights + slice * floats;
    float* to = target + slice * floats;
    for (const AxisResidue& h : height_residues) {
      for (const AxisResidue& w : width_residues) {
        for (int64_t i = 0; i < h.taps * w.taps; ++i, to += lanes) {
          const int64_t row = h.last_tap - i / w.taps * h.tap_step, column = w.last_tap - i % w.taps * w.tap_step;
          std::copy_n(from + (row * width.kernel + column) * lanes, lanes, to);
        }
      }
    }
  }
}

void BandGroup::copy_row(const void* source, int64_t pixel, int64_t width, float* plane, int64_t block_stride) const {
  const RowCopy copy = {ElementType::kBFloat16, pixel, 1, width, channels(), block_stride};
  if (!bands_.pairs) return bands_.table.gather_row(copy, source, plane);
  const int64_t distance = bands_.width.dilation, low = -input_columns(bands_.width).begin;
  bands_.table.pairs.row(copy, distance, std::min(distance, low), source, plane);
}

PlaneConv BandGroup::forward(int64_t block, const PlaneRows& inputs, Range rows, Activation activation, void* out,
                             int64_t pixel) const {
  const ConvAxis &height = bands_.height, &width = bands_.width;
  PlaneConv job = on_rows(inputs, block);
  job.plane += width.position(0, 0) * bands_.lanes;
  job.first_row = height.position(rows.begin, 0) - inputs.begin;
  job.out_rows = rows.size();
  job.columns = width.output;
  const auto set = [&](int index, const ConvAxis& axis) {
    job.kernel[index] = axis.kernel;
    job.stride[index] = axis.stride;
    job.dilation[index] = axis.dilation;
  };
  set(0, height);
  set(1, width);
  job.weights = bands_.weights + (block_ + block) * bands_.block_weights() * bands_.lanes;
  job.bias = bands_.bias + (block_ + block) * bands_.lanes;
  job.activation = activation;
  job.out_type = bands_.problem.element_type;
  job.out = advanced(out, block * bands_.lanes * element_bytes(job.out_type));
  job.out_row_stride = width.output * pixel;
  job.out_pixel_stride = pixel;
  job.channels = valid(block);
  return job;
}

void BandGroup::correlate(int64_t block, const PlaneRows& gradients, Range rows, PlaneConv job) const {
  const ConvAxis &height = bands_.height, &width = bands_.width;
  const int64_t lanes = bands_.lanes, pixel = job.out_pixel_stride;
  const float* weights = bands_.residue_weights + (block_ + block) * bands_.taps() * lanes;
  for (const AxisResidue& h : bands_.height_residues) {
    const int64_t skipped = std::max<int64_t>(0, ceil_div(rows.begin - h.first, height.stride));
    const int64_t row = h.first + skipped * height.stride;
    for (const AxisResidue& w : bands_.width_residues) {
      PlaneConv part = on_rows(gradients, block);
      part.plane += w.from * lanes;
      part.first_row = skipped + h.from - gradients.begin;
      part.out_rows = std::max<int64_t>(0, ceil_div(rows.end - row, height.stride));
      part.columns = ceil_div(width.input - w.first, width.stride);
      part.kernel[0] = h.taps;
      part.kernel[1] = w.taps;
      part.stride[0] = part.stride[1] = 1;
      part.dilation[0] = h.dilation;
      part.dilation[1] = w.dilation;
      part.weights = weights;
      part.activation = Activation::kNone;
      part.out = static_cast<float*>(job.out) + ((row - rows.begin) * width.input + w.first) * pixel;
      part.out_row_stride = height.stride * width.input * pixel;
      part.out_pixel_stride = width.stride * pixel;
      part.channels = job.channels;
      part.blocks = job.blocks;
      part.plane_stride = gradients.block_stride;
      part.weight_stride = bands_.taps() * lanes;
      part.out_block_stride = job.out_block_stride;
      part.stream = job.stream;
      part.prefetch = job.prefetch;
      bands_.table.plane_conv(part);
      job.prefetch = {};
      weights += h.taps * w.taps * lanes;
    }
  }
}

}  // namespace dwsep
