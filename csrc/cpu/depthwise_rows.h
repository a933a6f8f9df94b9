// Depthwise convolution of channels-last tensors, a few rows at a time: of every tensor that is read, the last rows lie
// in the cache as planes, a block of channels each, and every row is fetched once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/depthwise_backward_kernel.h"
#include "cpu/depthwise_bands.h"
#include "cpu/elements.h"
#include "cpu/stage_load.h"

namespace dwsep {

// The last rows of a tensor, of a group of channel blocks: [block][slot][column][lane], zeros beyond the tensor's
// columns.
class RowRing {
 public:
  RowRing() = default;
  RowRing(int64_t slots, Range columns, int64_t lanes) : slots_(slots), columns_(columns), lanes_(lanes) {}

  int64_t row_floats() const { return columns_.size() * lanes_; }
  int64_t block_floats() const { return slots_ * row_floats(); }
  // Places memory for `group` blocks. The tensor has columns [0, width) and `rows` rows.
  void place(float* memory, int64_t group, int64_t width, int64_t rows);
  // What column 0 of any block is relative to.
  float* block(int64_t block) const { return memory_ + block * block_floats() - columns_.begin * lanes_; }
  float* row(int64_t row, int64_t of_block) const { return block(of_block) + offsets_[static_cast<std::size_t>(row)]; }
  // Floats from a block to each of the tensor's rows.
  const int64_t* offsets() const { return offsets_.data(); }
  const Range& columns() const { return columns_; }

 private:
  int64_t slots_ = 0;
  Range columns_ = {0, 0};
  int64_t lanes_ = 0;
  float* memory_ = nullptr;
  std::vector<int64_t> offsets_;
};

// How a problem is cut for this.
struct RowsPlan : BandPlan {
  int64_t pixel_stride;  // floats from a pixel of either tensor to the next: its channels, or more where these are some
  int64_t together = 1;  // output rows that are computed at once
  RowRing inputs, gradients;

  RowsPlan(const KernelTable& kernels, const ConvProblem& of, bool backward);

  // Whether rows are the faster way without a stage, too, for channels-last tensors, measured: from memory they read
  // whole pixels, where planes read 64 channels of a pixel, but they prepare the taps of every row anew.
  bool pays(bool backward) const;
  // Of a forward whose rows do not pay: whether the direct kernel does, where planes would be another way.
  bool leaves_to_direct() const;

 private:
  bool half_pays() const;
  bool has_short_vectors() const;
  bool short_vectors_leave() const;
  bool is_beside_direct() const;
  bool pays_beside_direct() const;
};

// Where the channels of one group are being computed, and how rows come into the rings.
class RowsGroup : protected BandGroup {
 public:
  RowsGroup(const RowsPlan& plan, int64_t first_block) : BandGroup(plan, first_block), plan_(plan) {}

 protected:
  const RowsPlan& plan_;

  // Row `row` of `width` columns of image `image` of a tensor (N, rows, width, C) into a ring.
  void fetch(const RowRing& ring, const void* tensor, const StageLoad& load, int64_t image, int64_t rows, int64_t width,
             int64_t row) const;
  // Asks for what `fetch` of the row at `place` will read.
  void expect(RowsAhead& ahead, const void* place, int64_t width) const {
    const int64_t size = element_bytes(plan_.problem.element_type);
    ahead.add(place, width, plan_.pixel_stride * size, channels() * size);
  }
  // The same row's place in the tensor.
  int64_t at(int64_t image, int64_t rows, int64_t width, int64_t row) const {
    return ((image * rows + row) * width) * plan_.pixel_stride + channel();
  }
};

// Takes the gradients of a few input rows where they are made, in place of a tensor. Thread-safe, as far as parts go.
class GradientRows {
 public:
  virtual ~GradientRows() = default;
  // Floats of working memory for so many pixels.
  virtual int64_t memory_floats(int64_t pixels) const = 0;
  // Those of pixels [first, first + pixels) of the whole tensor, [channel block][pixel][lane], of one of the plan's
  // parts. `next` is what to ask for meanwhile.
  virtual void take(int64_t part, int64_t first, int64_t pixels, const float* panel, float* memory,
                    const Prefetch& next) const = 0;
  // Adds what taking such pixels will read.
  virtual void expect(RowsAhead& ahead, int64_t first, int64_t pixels) const = 0;
};

// `plan.group` must not be 0. `activation` of y; `sums` of y and of its squares, two rows
// that are pixel_stride long, or null for none. Of bfloat16 without a load or sums.
void depthwise_rows_forward(RowsPlan& plan, const WeightSources& weights, const StageLoad& load, Activation activation,
                            const void* x, void* y, double* sums);

// Without a stage, `stage` is empty. With a taker, all channels must be one group, and x's gradient a null pointer.
void depthwise_rows_backward(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                             const DepthwiseBackwardTensors& tensors, const GradientRows* taker = nullptr);

}  // namespace dwsep
