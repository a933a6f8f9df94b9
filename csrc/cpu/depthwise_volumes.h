// Depthwise convolution of channels-last floats with three axes, a slice at a time: of every tensor that is read, a few
// rows of the last slices lie in the cache as planes, a block of channels each.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/depthwise_rows.h"

namespace dwsep {

// A band of rows of the last slices of a tensor, of a group of channel blocks: [block][slot][row][column][lane], zeros
// beyond the tensor's columns.
class SliceRing {
 public:
  SliceRing() = default;
  SliceRing(int64_t slots, int64_t rows, Range columns, int64_t lanes)
      : slots_(slots), rows_(rows), columns_(columns), lanes_(lanes) {}

  int64_t row_floats() const { return columns_.size() * lanes_; }
  int64_t slice_floats() const { return rows_ * row_floats(); }
  int64_t block_floats() const { return slots_ * slice_floats(); }
  // Places memory for `group` blocks. The tensor has columns [0, width).
  void place(float* memory, int64_t group, int64_t width);
  // What column 0 of a block's first row is relative to, and floats from there to each slice.
  float* block(int64_t block) const { return memory_ + block * block_floats() - columns_.begin * lanes_; }
  int64_t offset(int64_t slice) const { return slice % slots_ * slice_floats(); }
  const Range& columns() const { return columns_; }

 private:
  int64_t slots_ = 0, rows_ = 0;
  Range columns_ = {0, 0};
  int64_t lanes_ = 0;
  float* memory_ = nullptr;
};

// How a problem is cut for this: groups of channel blocks, and bands of output rows that parts of the threads' work are
// made of. All of it depends on the shape alone.
struct VolumePlan {
  const KernelTable& table;
  const ConvProblem& problem;
  ConvAxis depth, height, width;
  int64_t lanes, blocks;
  int64_t group = 0;  // channel blocks together; 0 where this is not for the problem
  int64_t bands = 1;
  SliceRing inputs, gradients;
  const float* weights = nullptr;          // [block][tap][lane]
  const float* bias = nullptr;             // [block][lane]
  const float* residue_weights = nullptr;  // [block][tap along D][height's residue][width's residue][tap][lane]
  std::vector<AxisResidue> height_residues, width_residues;

  VolumePlan(const KernelTable& kernels, const ConvProblem& of, bool backward);

  // Whether this is the faster way for channels-last tensors, measured.
  bool pays(bool backward) const;

  int64_t groups() const { return ceil_div(blocks, group); }
  // A band of an image is an item; a part is some items, with sums of its own.
  int64_t items() const { return problem.batch * bands; }
  int64_t parts() const { return std::clamp<int64_t>(items(), 1, 16); }
  Range items_of(int64_t part) const { return {items() * part / parts(), items() * (part + 1) / parts()}; }
  Range band(int64_t item) const {
    return {height.output * (item % bands) / bands, height.output * (item % bands + 1) / bands};
  }
  int64_t slice_taps() const { return height.kernel * width.kernel; }
  int64_t taps() const { return depth.kernel * slice_taps(); }
  int64_t packed_floats() const { return blocks * ((is_backward() ? 2 : 1) * taps() + 1) * lanes; }
  void pack(const WeightSources& sources, float* memory);

 private:
  bool is_backward() const { return !height_residues.empty(); }
};

// `plan.group` must not be 0.
void depthwise_volumes_forward(VolumePlan& plan, const WeightSources& weights, Activation activation, const float* x,
                               float* y);
void depthwise_volumes_backward(VolumePlan& plan, const WeightSources& weights,
                                const DepthwiseBackwardTensors& tensors);

}  // namespace dwsep
