// Depthwise convolution of channels-last tensors with three axes, a slice at a time: of every tensor that is read, a
// few rows of the last slices lie in the cache as planes, a block of channels each.
#pragma once

#include <cstdint>

#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_bands.h"

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

// How a problem is cut for this.
struct VolumePlan : BandPlan {
  SliceRing inputs, gradients;

  VolumePlan(const KernelTable& kernels, const ConvProblem& of, bool backward);

  // Whether this is the faster way for channels-last tensors, measured.
  bool pays(bool backward) const;
};

// Where the channels of one group of one part are being computed, and how slices come into the rings.
class VolumeGroup : protected BandGroup {
 public:
  VolumeGroup(const VolumePlan& plan, int64_t first_block) : BandGroup(plan, first_block), plan_(plan) {}

 protected:
  const VolumePlan& plan_;
  int64_t image_ = 0;

  // The place of a row of a tensor (N, D, H, W, C) of these sizes, of the group's first channel.
  int64_t at(const int64_t (&sizes)[3], int64_t image, int64_t slice, int64_t row) const {
    return ((image * sizes[0] + slice) * sizes[1] + row) * sizes[2] * plan_.problem.channels + channel();
  }
  int64_t input_at(int64_t image, int64_t slice, int64_t row) const {
    return at(plan_.problem.input, image, slice, row);
  }
  int64_t output_at(int64_t image, int64_t slice, int64_t row) const {
    return at(plan_.problem.output, image, slice, row);
  }

  // Rows of `width` columns, the first of them at `from`, become a ring's slice.
  void fetch(const SliceRing& ring, const void* from, int64_t rows, int64_t width, int64_t slice) const;
  void expect(const void* from, int64_t rows, int64_t width);
};

// `plan.group` must not be 0.
void depthwise_volumes_forward(VolumePlan& plan, const WeightSources& weights, Activation activation, const void* x,
                               void* y);
void depthwise_volumes_backward(VolumePlan& plan, const WeightSources& weights,
                                const DepthwiseBackwardTensors& tensors);

}  // namespace dwsep
