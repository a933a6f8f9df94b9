// What depthwise convolutions by rows and by slices have in common: of channels-last tensors, a group of channel blocks
// at a time lies in the cache as planes, and threads share bands of output rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/plane_jobs.h"
#include "cpu/plane_tiling.h"
#include "cpu/rows_ahead.h"
#include "cpu/scratch.h"

namespace dwsep {

// Tensors of more bytes than that together come from memory in part: they are faster read whole and asked for ahead.
constexpr int64_t kLargeBytes = int64_t{8} << 20;

// Input positions of an axis which are a stride apart, from `first` on, and the taps that bring outputs to them, the
// last tap first: its operand is the first in memory.
struct AxisResidue {
  int64_t first;
  int64_t taps;
  int64_t last_tap, tap_step;  // from a tap to the one before it
  int64_t from;                // the output position that the last tap brings to `first`
  int64_t dilation;            // output positions from a tap's operand to the next one's
};

std::vector<AxisResidue> axis_residues(const ConvAxis& axis);

// Columns that the taps of any output column reach, beyond the input too.
Range input_columns(const ConvAxis& axis);

// Columns of outputs whose taps reach any input column, beyond the output too.
Range gradient_columns(const ConvAxis& axis);

// Whether a problem's first axis is one that it has not got.
bool has_two_axes(const ConvProblem& problem);

// How a problem is cut: groups of channel blocks, and bands of output rows that parts of the threads' work are made of.
// All of it depends on the shape alone.
struct BandPlan {
  const KernelTable& table;
  const ConvProblem& problem;
  ConvAxis depth, height, width;
  int64_t lanes, blocks;
  int64_t group = 0;  // channel blocks together; 0 where this is not for the problem
  int64_t bands = 1;
  int64_t most_parts = 16;
  bool pairs;                      // planes and weights hold two bfloat16 in the place of a float, see PairKernels
  int64_t row_weights;             // vectors of a kernel row's weights: one a tap, or one for two
  const float* weights = nullptr;  // [block][kernel row][row_weights][lane]
  const float* bias = nullptr;     // [block][lane]
  // The same for the way back, [block][tap along D][height's residue][width's residue][tap][lane].
  const float* residue_weights = nullptr;
  std::vector<AxisResidue> height_residues, width_residues;

  // `backward` where gradients are computed, too.
  BandPlan(const KernelTable& kernels, const ConvProblem& of, bool backward);

  int64_t groups() const { return ceil_div(blocks, group); }
  // A band of an image is an item; a part is some items, with sums of its own.
  int64_t items() const { return problem.batch * bands; }
  int64_t parts() const { return std::clamp<int64_t>(items(), 1, most_parts); }
  Range items_of(int64_t part) const { return {items() * part / parts(), items() * (part + 1) / parts()}; }
  Range band(int64_t item) const { return band_of(height.output, item); }
  // An item's share of so many rows.
  Range band_of(int64_t rows, int64_t item) const {
    return {rows * (item % bands) / bands, rows * (item % bands + 1) / bands};
  }
  int64_t slice_taps() const { return height.kernel * width.kernel; }
  int64_t taps() const { return depth.kernel * slice_taps(); }
  int64_t slice_weights() const { return height.kernel * row_weights; }
  int64_t block_weights() const { return depth.kernel * slice_weights(); }
  int64_t padded() const { return blocks * lanes; }
  // Of gradients of a block's weights, [taps, then bias][lane].
  int64_t sums_of_block() const { return (taps() + 1) * lanes; }
  int64_t packed_floats() const { return blocks * ((is_backward() ? 2 : 1) * taps() + 1) * lanes; }
  void pack(const WeightSources& sources, float* memory);
  void run(const PlaneConv& job) const { (pairs ? table.pairs.plane_conv : table.plane_conv)(job); }

 protected:
  // Each part has sums of its own for every tap, so that few pixels must not be cut into many parts: threads then share
  // channels.
  void limit_parts(int64_t pixels);

 private:
  bool is_backward() const { return !height_residues.empty(); }
  void pack_pairs(float* target) const;
  void pack_residues(float* target) const;
};

// Where the rows of a tensor lie in planes, those of a group's first channel block.
struct PlaneRows {
  const float* first;    // column 0 of the first row, or what the offsets begin at
  int64_t block_stride;  // floats from a block to the next
  int64_t row_stride;
  int64_t begin;  // the first of them
  int64_t end;    // and the one behind the last
  const int64_t* offsets = nullptr;
  const PlaneSlice* slices = nullptr;
  int64_t slice_count = 1;
};

// Where the channels of one group are being computed.
class BandGroup {
 public:
  BandGroup(const BandPlan& plan, int64_t first_block)
      : bands_(plan), block_(first_block), group_(std::min(plan.group, plan.blocks - first_block)) {}

 protected:
  const BandPlan& bands_;
  int64_t block_;  // the first
  int64_t group_;  // blocks
  RowsAhead ahead_;

  int64_t channel() const { return block_ * bands_.lanes; }
  int64_t channels() const { return std::min(bands_.problem.channels - channel(), group_ * bands_.lanes); }
  // Channels of block `block` of the group that exist.
  int64_t valid(int64_t block) const {
    return std::min(bands_.lanes, bands_.problem.channels - channel() - block * bands_.lanes);
  }
  // A share of what is to be asked for, of so many.
  Prefetch share(int64_t shares) { return ahead_.take(ceil_div(ahead_.lines(), shares)); }

  // A row of `width` pixels, `pixel` elements from one to the next, of a tensor of bfloat16, as the plan's planes have
  // it: column 0 at `plane`, a block every block_stride floats.
  void copy_row(const void* source, int64_t pixel, int64_t width, float* plane, int64_t block_stride) const;
  // Output rows `rows` of a block, which begin at `out`, `pixel` elements from a pixel to the next.
  PlaneConv forward(int64_t block, const PlaneRows& inputs, Range rows, Activation activation, void* out,
                    int64_t pixel) const;
  // Computes the gradients of input rows `rows` of blocks from `block` on from those of the outputs. `job` says of how
  // many, and what is to be done with them: out and its strides from a pixel and from a block to the next, channels,
  // stream; and what to ask for meanwhile.
  void correlate(int64_t block, const PlaneRows& gradients, Range rows, PlaneConv job) const;
};

// Every part of every group of channels: the items of `make(part, first block, memory)`.
template <class Make>
void run_parts(const BandPlan& plan, int64_t floats, const Make& make) {
  const int64_t parts = plan.parts(), groups = plan.groups();
  parallel_parts(groups * parts, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(floats));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit / groups;
      auto channels = make(part, unit % groups * plan.group, memory);
      const Range items = plan.items_of(part);
      for (int64_t item = items.begin; item < items.end; ++item) {
        // The next part's rows are most often this thread's, too.
        channels.run(item, item + 1 < items.end || groups == 1 ? item + 1 : plan.items());
      }
    }
    plan.table.finish_streams();
  });
}

}  // namespace dwsep
