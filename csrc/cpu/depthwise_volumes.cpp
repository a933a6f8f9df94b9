#include "cpu/depthwise_volumes.h"

#include <algorithm>
#include <utility>

#include "cpu/cache_size.h"
#include "cpu/depthwise_backward_tile.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"
#include "cpu/plane_plan.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

// The rows under output rows [begin, end), inside the input.
Range rows_under(const ConvAxis& axis, int64_t begin, int64_t end) {
  return {std::max<int64_t>(0, axis.position(begin, 0)),
          std::min(axis.input, axis.position(end - 1, axis.kernel - 1) + 1)};
}

// The first input position that no output before `out` is the last to reach.
int64_t first_result(const ConvAxis& axis, int64_t out) {
  return out == axis.output ? axis.input : std::clamp<int64_t>(axis.position(out, 0), 0, axis.input);
}

// Outputs before a position's own whose taps reach it.
int64_t reach(const ConvAxis& axis) { return (axis.kernel - 1) * axis.dilation / axis.stride; }

// One group of channels of one part.
class VolumeGroup {
 public:
  VolumeGroup(const VolumePlan& plan, int64_t first_block)
      : plan_(plan), block_(first_block), group_(std::min(plan.group, plan.blocks - first_block)) {}

 protected:
  const VolumePlan& plan_;
  int64_t block_;  // the first
  int64_t group_;  // blocks
  int64_t image_ = 0;
  RowsAhead ahead_;

  int64_t channel() const { return block_ * plan_.lanes; }
  int64_t channels() const { return std::min(plan_.problem.channels - channel(), group_ * plan_.lanes); }
  // Channels of block `block` of the group that exist.
  int64_t valid(int64_t block) const {
    return std::min(plan_.lanes, plan_.problem.channels - channel() - block * plan_.lanes);
  }
  // The place of a row of a tensor (N, D, H, W, C), of the group's first channel.
  static int64_t at(const int64_t (&sizes)[3], int64_t channels, int64_t image, int64_t slice, int64_t row) {
    return ((image * sizes[0] + slice) * sizes[1] + row) * sizes[2] * channels;
  }
  int64_t input_at(int64_t image, int64_t slice, int64_t row) const {
    return at(plan_.problem.input, plan_.problem.channels, image, slice, row) + channel();
  }
  int64_t output_at(int64_t image, int64_t slice, int64_t row) const {
    return at(plan_.problem.output, plan_.problem.channels, image, slice, row) + channel();
  }

  // Rows of `width` columns, the first of them at `from`, become a ring's slice.
  void fetch(const SliceRing& ring, const float* from, int64_t rows, int64_t width, int64_t slice) const {
    const int64_t pixel = plan_.problem.channels;
    StageRow job = {from,
                    nullptr,
                    nullptr,
                    nullptr,
                    Activation::kNone,
                    pixel,
                    width,
                    channels(),
                    ring.block(0) + ring.offset(slice),
                    ring.block_floats()};
    for (int64_t row = 0; row < rows; ++row) {
      plan_.table.stage_row(job);
      job.x += width * pixel;
      job.plane += ring.row_floats();
    }
  }
  void expect(const float* from, int64_t rows, int64_t width) {
    const auto size = static_cast<int64_t>(sizeof(float));
    ahead_.add(from, rows * width, plan_.problem.channels * size, channels() * size);
  }
  // A share of what is to be asked for, of so many.
  Prefetch take(int64_t shares) { return ahead_.take(ceil_div(ahead_.lines(), shares)); }
};

class ForwardVolumes : VolumeGroup {
 public:
  ForwardVolumes(const VolumePlan& plan, int64_t first_block, Activation activation, const float* x, float* y,
                 bool stream, float* memory)
      : VolumeGroup(plan, first_block), activation_(activation), x_(x), y_(y), stream_(stream), inputs_(plan.inputs) {
    inputs_.place(memory, group_, plan.width.input);
  }

  static int64_t floats(const VolumePlan& plan) { return plan.group * plan.inputs.block_floats(); }

  // What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    image_ = item / plan_.bands;
    const Range band = plan_.band(item), rows = rows_under(plan_.height, band.begin, band.end);
    int64_t held = 0;
    for (int64_t slice = 0; slice < plan_.depth.output; ++slice) {
      const Range under = rows_under(plan_.depth, slice, slice + 1);
      for (held = std::max(held, under.begin); held < under.end; ++held) {
        fetch(inputs_, x_ + input_at(image_, held, rows.begin), rows.size(), plan_.width.input, held);
      }
      ahead_.clear();
      if (slice + 1 < plan_.depth.output) {
        look_ahead(image_, held, rows_under(plan_.depth, slice + 1, slice + 2).end, rows);
      } else if (next < plan_.items()) {
        const Range after = plan_.band(next), first = rows_under(plan_.depth, 0, 1);
        look_ahead(next / plan_.bands, first.begin, first.end, rows_under(plan_.height, after.begin, after.end));
      }
      compute(slice, band, rows);
    }
  }

 private:
  Activation activation_;
  const float* x_;
  float* y_;
  bool stream_;
  SliceRing inputs_;
  std::vector<PlaneSlice> slices_;

  void look_ahead(int64_t image, int64_t begin, int64_t end, Range rows) {
    for (int64_t slice = begin; slice < end; ++slice) {
      expect(x_ + input_at(image, slice, rows.begin), rows.size(), plan_.width.input);
    }
  }

  void compute(int64_t slice, Range band, Range rows) {
    const ConvAxis &depth = plan_.depth, &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, pixel = plan_.problem.channels;
    const Range taps = depth.taps_inside(slice);
    slices_.clear();
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      slices_.push_back({inputs_.offset(depth.position(slice, tap)), tap * plan_.slice_taps() * lanes});
    }
    float* out = y_ + output_at(image_, slice, band.begin);
    for (int64_t block = 0; block < group_; ++block) {
      PlaneConv job = {inputs_.block(block) + width.position(0, 0) * lanes,
                       inputs_.row_floats(),
                       rows.size(),
                       height.position(band.begin, 0) - rows.begin,
                       band.size(),
                       width.output,
                       {height.kernel, width.kernel},
                       {height.stride, width.stride},
                       {height.dilation, width.dilation},
                       plan_.weights + (block_ + block) * plan_.taps() * lanes,
                       plan_.bias + (block_ + block) * lanes,
                       activation_,
                       out + block * lanes,
                       width.output * pixel,
                       pixel,
                       valid(block),
                       nullptr,
                       0};
      job.slices = slices_.data();
      job.slice_count = static_cast<int64_t>(slices_.size());
      job.stream = stream_;
      job.prefetch = take(group_);
      plan_.table.plane_conv(job);
    }
  }
};

class BackwardVolumes : VolumeGroup {
 public:
  // `sums` [block][taps, then bias][lane]: this group's begin at zero.
  BackwardVolumes(const VolumePlan& plan, int64_t first_block, const DepthwiseBackwardTensors& tensors, bool stream,
                  float* sums, float* memory)
      : VolumeGroup(plan, first_block),
        tensors_(tensors),
        stream_(stream),
        sums_(sums + first_block * sums_of_block()),
        inputs_(plan.inputs),
        gradients_(plan.gradients) {
    inputs_.place(memory, group_, plan.width.input);
    gradients_.place(memory + plan.group * plan.inputs.block_floats(), group_, plan.width.output);
    zeros_ = memory + plan.group * (plan.inputs.block_floats() + plan.gradients.block_floats());
    std::fill_n(zeros_, plan.inputs.row_floats(), 0.0f);
    std::fill_n(sums_, group_ * sums_of_block(), 0.0f);
  }

  static int64_t floats(const VolumePlan& plan) {
    return plan.group * (plan.inputs.block_floats() + plan.gradients.block_floats()) + plan.inputs.row_floats();
  }

  // A band of output rows: their share of the weight's gradient, and the gradients of the input rows which no later
  // row reaches and this band's rows do. What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    const ConvAxis& depth = plan_.depth;
    set(item);
    int64_t next_input = 0, next_result = 0;
    for (int64_t slice = 0; slice < depth.output; ++slice) {
      fetch(gradients_, gradient() + output_at(image_, slice, reached_.begin), reached_.size(), plan_.width.output,
            slice);
      const Range under = rows_under(depth, slice, slice + 1);
      if (wants_weight()) {
        for (next_input = std::max(next_input, under.begin); next_input < under.end; ++next_input) {
          fetch(inputs_, x() + input_at(image_, next_input, under_.begin), under_.size(), plan_.width.input,
                next_input);
        }
      }
      ahead_.clear();
      if (slice + 1 < depth.output) {
        look_ahead(slice + 1, {next_input, rows_under(depth, slice + 1, slice + 2).end});
      } else if (next < plan_.items()) {
        const int64_t image = image_;
        set(next);
        look_ahead(0, rows_under(depth, 0, 1));
        set(item);
        image_ = image;
      }
      if (wants_weight()) add_weight_gradient(slice);
      if (tensors_.bias_gradient != nullptr) add_bias_gradient(slice);
      const int64_t ready = wants_x() ? first_result(depth, slice + 1) : 0;
      for (; next_result < ready; ++next_result) compute_x_gradient(next_result);
      ahead_.ask(ahead_.lines());
    }
  }

 private:
  const DepthwiseBackwardTensors& tensors_;
  bool stream_;
  float* sums_;
  SliceRing inputs_, gradients_;
  float* zeros_;
  // Of the band: its output rows, the input rows under them, those whose gradients it computes, and the output rows
  // that reach these.
  Range band_ = {0, 0}, under_ = {0, 0}, results_ = {0, 0}, reached_ = {0, 0};
  std::vector<const float*> pointers_;
  std::vector<PlaneSlice> slices_;

  bool wants_x() const { return tensors_.x_gradient != nullptr; }
  bool wants_weight() const { return tensors_.weight_gradient != nullptr; }
  const float* gradient() const { return static_cast<const float*>(tensors_.gradient); }
  const float* x() const { return static_cast<const float*>(tensors_.x); }
  int64_t sums_of_block() const { return (plan_.taps() + 1) * plan_.lanes; }

  void set(int64_t item) {
    const ConvAxis& height = plan_.height;
    image_ = item / plan_.bands;
    band_ = plan_.band(item);
    under_ = rows_under(height, band_.begin, band_.end);
    results_ = {band_.begin == 0 ? 0 : first_result(height, band_.begin), first_result(height, band_.end)};
    reached_ = {wants_x() ? std::max<int64_t>(0, band_.begin - reach(height)) : band_.begin, band_.end};
  }

  void look_ahead(int64_t slice, Range inputs) {
    expect(gradient() + output_at(image_, slice, reached_.begin), reached_.size(), plan_.width.output);
    for (int64_t input = inputs.begin; wants_weight() && input < inputs.end; ++input) {
      expect(x() + input_at(image_, input, under_.begin), under_.size(), plan_.width.input);
    }
  }

  // A block's row of the gradient's slice.
  const float* gradient_row(int64_t block, int64_t slice, int64_t row) const {
    return gradients_.block(block) + gradients_.offset(slice) + (row - reached_.begin) * gradients_.row_floats();
  }

  void add_weight_gradient(int64_t slice) {
    const ConvAxis &depth = plan_.depth, &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, left = width.position(0, 0) * lanes;
    const Range taps = depth.taps_inside(slice);
    for (int64_t block = 0; block < group_; ++block) {
      pointers_.clear();
      for (int64_t row = band_.begin; row < band_.end; ++row) {
        pointers_.push_back(gradient_row(block, slice, row));
        for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
          const float* input = inputs_.block(block) + inputs_.offset(depth.position(slice, tap));
          for (int64_t h = 0; h < height.kernel; ++h) {
            const int64_t from = height.position(row, h);
            const bool inside = from >= 0 && from < height.input;
            pointers_.push_back((inside ? input + (from - under_.begin) * inputs_.row_floats()
                                        : zeros_ - inputs_.columns().begin * lanes) +
                                left);
          }
        }
      }
      plan_.table.weight_gradient_rows({pointers_.data(), band_.size(), width.output, width.stride * lanes,
                                        width.dilation * lanes, taps.size() * height.kernel, width.kernel,
                                        sums_ + block * sums_of_block() + taps.begin * plan_.slice_taps() * lanes,
                                        width.kernel * lanes, take(2 * group_)});
    }
  }

  void add_bias_gradient(int64_t slice) {
    for (int64_t block = 0; block < group_; ++block) {
      float* sums = sums_ + block * sums_of_block() + plan_.taps() * plan_.lanes;
      for (int64_t row = band_.begin; row < band_.end; ++row) {
        plan_.table.sum_row(gradient_row(block, slice, row), plan_.width.output, sums);
      }
    }
  }

  void compute_x_gradient(int64_t slice) {
    const ConvAxis& depth = plan_.depth;
    slices_.clear();
    for (int64_t tap = depth.kernel - 1; tap >= 0; --tap) {
      const int64_t from = slice + depth.pad_low - tap * depth.dilation;
      if (from < 0 || from % depth.stride != 0 || from / depth.stride >= depth.output) continue;
      slices_.push_back({gradients_.offset(from / depth.stride), tap * plan_.slice_taps() * plan_.lanes});
    }
    auto* target = static_cast<float*>(tensors_.x_gradient) + input_at(image_, slice, results_.begin);
    for (int64_t block = 0; block < group_; ++block) {
      correlate(block, target + block * plan_.lanes);
    }
  }

  void correlate(int64_t block, float* out) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, pixel = plan_.problem.channels;
    const float* weights = plan_.residue_weights + (block_ + block) * plan_.taps() * lanes;
    Prefetch next = take(2 * group_);
    for (const AxisResidue& h : plan_.height_residues) {
      const int64_t skipped = std::max<int64_t>(0, ceil_div(results_.begin - h.first, height.stride));
      const int64_t row = h.first + skipped * height.stride;
      for (const AxisResidue& w : plan_.width_residues) {
        PlaneConv job = {gradients_.block(block) + w.from * lanes,
                         gradients_.row_floats(),
                         reached_.size(),
                         skipped + h.from - reached_.begin,
                         std::max<int64_t>(0, ceil_div(results_.end - row, height.stride)),
                         ceil_div(width.input - w.first, width.stride),
                         {h.taps, w.taps},
                         {1, 1},
                         {h.dilation, w.dilation},
                         weights,
                         nullptr,
                         Activation::kNone,
                         out + ((row - results_.begin) * width.input + w.first) * pixel,
                         height.stride * width.input * pixel,
                         width.stride * pixel,
                         valid(block),
                         nullptr,
                         0};
        job.slices = slices_.data();
        job.slice_count = static_cast<int64_t>(slices_.size());
        job.stream = stream_;
        job.prefetch = std::exchange(next, {});
        plan_.table.plane_conv(job);
        weights += h.taps * w.taps * lanes;
      }
    }
  }
};

// Every part of every group of channels: `make(part, first block, memory)`'s items.
template <class Make>
void run_parts(const VolumePlan& plan, int64_t floats, const Make& make) {
  const int64_t parts = plan.parts(), groups = plan.groups();
  parallel_parts(groups * parts, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(floats));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit / groups;
      auto volumes = make(part, unit % groups * plan.group, memory);
      const Range items = plan.items_of(part);
      for (int64_t item = items.begin; item < items.end; ++item) {
        // The next part's rows are most often this thread's, too.
        volumes.run(item, item + 1 < items.end || groups == 1 ? item + 1 : plan.items());
      }
    }
    plan.table.finish_streams();
  });
}

}  // namespace

void SliceRing::place(float* memory, int64_t group, int64_t width) {
  memory_ = memory;
  for (float* row = memory; row < memory + group * block_floats(); row += row_floats()) {
    std::fill_n(row, -columns_.begin * lanes_, 0.0f);
    std::fill(row + (width - columns_.begin) * lanes_, row + row_floats(), 0.0f);
  }
}

VolumePlan::VolumePlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : table(kernels),
      problem(of),
      depth(conv_axis(of, 0)),
      height(conv_axis(of, 1)),
      width(conv_axis(of, 2)),
      lanes(kernels.lanes),
      blocks(ceil_div(of.channels, kernels.lanes)) {
  const bool empty = of.batch == 0 || depth.output < 1 || height.output < 1 || width.output < 1;
  const bool flat = of.input[0] == 1 && of.output[0] == 1 && of.kernel[0] == 1;
  if (flat || of.multiplier != 1 || of.element_type != ElementType::kFloat32 || empty) return;
  if (backward) {
    height_residues = axis_residues(height);
    width_residues = axis_residues(width);
  }
  const auto size = static_cast<int64_t>(sizeof(float));
  const int64_t budget = l2_cache_bytes() / 2 / size;
  const auto rings = [&](int64_t rows) {
    const int64_t under = (rows - 1) * height.stride + (height.kernel - 1) * height.dilation + 1;
    inputs = SliceRing(std::min((depth.kernel - 1) * depth.dilation + 1, depth.input), std::min(under, height.input),
                       input_columns(width), lanes);
    if (backward) {
      gradients = SliceRing(std::min(reach(depth) + 1, depth.output), std::min(reach(height) + rows, height.output),
                            gradient_columns(width), lanes);
    }
    return inputs.block_floats() + gradients.block_floats();
  };
  // Neighbouring channels are read together, and rows under two bands twice.
  constexpr int64_t kMostBlocks = 4, kLeastRows = 7;
  for (group = std::min(blocks, kMostBlocks); group > 0; --group) {
    if (rings(std::min(height.output, kLeastRows)) * group <= budget) break;
  }
  if (group == 0) return;
  group = ceil_div(blocks, ceil_div(blocks, group));
  int64_t rows = height.output;
  while (rows > 1 && rings(rows) * group > budget) --rows;
  const int64_t wanted = ceil_div(16, groups() * of.batch);
  bands = std::max(ceil_div(height.output, rows), std::min(wanted, std::max<int64_t>(1, height.output / 8)));
  rings(ceil_div(height.output, bands));
}

bool VolumePlan::pays(bool backward) const {
  if (group == 0 || backward) return group > 0;
  // The direct forward reads what few taps share from a cache, and of strided slices not all.
  constexpr int64_t kManyTaps = 9, kLargeBytes = int64_t{8} << 20;
  const int64_t pixels =
      problem.batch * (depth.input * height.input * width.input + depth.output * height.output * width.output);
  const bool large = pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kLargeBytes;
  return depth.stride == 1 && (taps() > kManyTaps || large);
}

void VolumePlan::pack(const WeightSources& sources, float* memory) {
  const int64_t floats = blocks * taps() * lanes;
  weights = memory;
  bias = memory + floats;
  pack_for_planes(problem, lanes, sources, memory, memory + floats);
  if (!is_backward()) return;
  residue_weights = memory + floats + blocks * lanes;
  pack_residues(weights, blocks * depth.kernel, slice_taps(), lanes, height_residues, width_residues, width.kernel,
                memory + floats + blocks * lanes);
}

void depthwise_volumes_forward(VolumePlan& plan, const WeightSources& weights, Activation activation, const float* x,
                               float* y) {
  const ConvProblem& problem = plan.problem;
  plan.pack(weights, scratch(Scratch::kPack, static_cast<std::size_t>(plan.packed_floats())));
  const int64_t pixels = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const bool stream = streams(y, pixels, problem.channels, problem.channels, kForwardStreamBytes);
  run_parts(plan, ForwardVolumes::floats(plan), [&](int64_t, int64_t first_block, float* memory) {
    return ForwardVolumes(plan, first_block, activation, x, y, stream, memory);
  });
}

void depthwise_volumes_backward(VolumePlan& plan, const WeightSources& weights,
                                const DepthwiseBackwardTensors& tensors) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts(), part_floats = plan.blocks * (plan.taps() + 1) * plan.lanes;
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats()), sums_at = layout.add(parts * part_floats);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  float* sums = memory + sums_at;
  const auto* x_gradient = static_cast<const float*>(tensors.x_gradient);
  const int64_t pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
  const bool stream =
      x_gradient != nullptr && streams(x_gradient, pixels, problem.channels, problem.channels, kTrainingStreamBytes);
  run_parts(plan, BackwardVolumes::floats(plan), [&](int64_t part, int64_t first_block, float* panel) {
    return BackwardVolumes(plan, first_block, tensors, stream, sums + part * part_floats, panel);
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr) {
    write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
  }
}

}  // namespace dwsep
