#include <algorithm>

#include "cpu/depthwise_rows.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

class ForwardRows : RowsGroup {
 public:
  // `sums` [2][padded channels] are added to; null for none.
  ForwardRows(const RowsPlan& plan, int64_t first_block, const StageLoad& load, Activation activation, const float* x,
              float* y, bool stream, double* sums, float* memory)
      : RowsGroup(plan, first_block),
        load_(load),
        activation_(activation),
        x_(x),
        y_(y),
        stream_(stream),
        sums_(sums),
        inputs_(plan.inputs) {
    inputs_.place(memory, group_);
    row_ = memory + inputs_.floats(plan.group);
  }

  static int64_t floats(const RowsPlan& plan) {
    return plan.inputs.floats(plan.group) + plan.width.output * plan.lanes;
  }

  void run(int64_t item) {
    const int64_t image = item / plan_.bands;
    const Range band = plan_.band(item);
    const ConvAxis& height = plan_.height;
    int64_t next = 0;
    for (int64_t row = band.begin; row < band.end; ++row) {
      const int64_t stop = std::min(height.input, last_row(row) + 1);
      for (next = std::max(next, height.position(row, 0)); next < stop; ++next) {
        fetch(inputs_, x_, load_, image, height.input, plan_.width.input, next);
      }
      look_ahead(image, next, std::min(height.input, last_row(row + 1) + 1));
      compute(image, row);
    }
  }

 private:
  const StageLoad& load_;
  Activation activation_;
  const float* x_;
  float* y_;
  bool stream_;
  double* sums_;
  RowRing inputs_;
  float* row_;
  std::vector<Tap> taps_;
  RowsAhead ahead_;

  int64_t last_row(int64_t row) const { return plan_.height.position(row, plan_.height.kernel - 1); }

  void look_ahead(int64_t image, int64_t begin, int64_t end) {
    ahead_.clear();
    const int64_t width = plan_.width.input;
    for (int64_t row = begin; row < end; ++row) {
      expect(ahead_, x_ + at(image, plan_.height.input, width, row), width);
    }
  }

  void compute(int64_t image, int64_t row) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes;
    const float* origin = inputs_.row(0, 0);
    taps_.clear();
    for (int64_t h = 0; h < height.kernel; ++h) {
      const int64_t from = height.position(row, h);
      if (from < 0 || from >= height.input) continue;
      for (int64_t w = 0; w < width.kernel; ++w) {
        taps_.push_back({inputs_.row(from, 0) - origin + w * width.dilation * lanes, (h * width.kernel + w) * lanes});
      }
    }
    const int64_t to = at(image, height.output, width.output, row), share = ceil_div(ahead_.lines(), group_);
    for (int64_t block = 0; block < group_; ++block) {
      CorrelateRow job = {};
      job.taps = taps_.data();
      job.tap_count = static_cast<int64_t>(taps_.size());
      if (width.stride == 1 && width.dilation == 1) job.run = width.kernel;
      job.run_step = lanes;
      job.source = inputs_.row(0, block) + width.position(0, 0) * lanes;
      job.weights = plan_.weights + (block_ + block) * plan_.taps() * lanes;
      job.bias = plan_.bias + (block_ + block) * lanes;
      job.step = width.stride * lanes;
      job.pixels = width.output;
      job.activation = activation_;
      const int64_t first = channel() + block * lanes, valid = std::min(lanes, plan_.problem.channels - first);
      float* target = y_ + to + block * lanes;
      const bool direct = sums_ == nullptr && valid == lanes;
      job.out = direct ? target : row_;
      job.out_stride = direct ? plan_.pixel_stride : lanes;
      job.stream = direct && stream_;
      ahead_.ask(share);
      plan_.table.correlate_row(job);
      if (direct) continue;
      if (sums_ == nullptr) {
        plan_.table.scatter_row({ElementType::kFloat32, plan_.pixel_stride, 1, width.output, valid, 0}, row_, target);
        continue;
      }
      plan_.table.finish_row(
          {row_, width.output, valid, target, plan_.pixel_stride, stream_, sums_ + first, plan_.padded()});
    }
  }
};

}  // namespace

void depthwise_rows_forward(RowsPlan& plan, const WeightSources& weights, const StageLoad& load, Activation activation,
                            const float* x, float* y, double* sums) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts(), groups = plan.groups();
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats());
  const int64_t sums_size = sums != nullptr ? 2 * plan.padded() : 0;
  const int64_t sums_at = layout.add_doubles(parts * sums_size);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  auto* part_sums = reinterpret_cast<double*>(memory + sums_at);
  std::fill_n(part_sums, parts * sums_size, 0.0);
  const int64_t pixels = problem.batch * problem.output[1] * problem.output[2];
  const bool stream = streams(y, pixels, problem.channels, plan.pixel_stride);
  parallel_for(groups * parts, 1, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(ForwardRows::floats(plan)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit / groups;
      ForwardRows rows(plan, unit % groups * plan.group, load, activation, x, y, stream,
                       sums != nullptr ? part_sums + part * sums_size : nullptr, panel);
      const Range items = plan.items_of(part);
      for (int64_t item = items.begin; item < items.end; ++item) rows.run(item);
    }
    plan.table.finish_streams();
  });
  if (sums != nullptr) add_moments(part_sums, parts, plan.padded(), problem.channels, sums, plan.pixel_stride);
}

}  // namespace dwsep
