#include <algorithm>

#include "cpu/depthwise_rows.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/repeated_channels.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

class ForwardRows : RowsGroup {
 public:
  // `sums` [2][padded channels], of which this group's begin at zero; null for none.
  ForwardRows(const RowsPlan& plan, int64_t first_block, const StageLoad& load, Activation activation, const void* x,
              void* y, bool stream, double* sums, float* memory)
      : RowsGroup(plan, first_block),
        load_(load),
        activation_(activation),
        x_(x),
        y_(y),
        stream_(stream),
        sums_(sums),
        size_(element_bytes(plan.problem.element_type)),
        inputs_(plan.inputs),
        // What goes past the caches is written most quickly in the order in which it lies.
        together_(stream ? std::min<int64_t>(2, plan.together) : plan.together) {
    inputs_.place(memory, group_, plan.width.input, plan.height.input);
    for (int64_t row = 0; sums != nullptr && row < 2; ++row) {
      std::fill_n(sums + row * plan.padded() + channel(), group_ * plan.lanes, 0.0);
    }
  }

  static int64_t floats(const RowsPlan& plan) { return plan.group * plan.inputs.block_floats(); }

  // What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    const int64_t image = item / plan_.bands;
    const Range band = plan_.band(item);
    Range held = {0, 0};
    for (int64_t row = band.begin; row < band.end; row += together_) {
      const int64_t end = std::min(band.end, row + together_);
      const Range under = plan_.height.under(row, end);
      for (int64_t at = std::max(held.end, under.begin); at < under.end; ++at) {
        fetch(inputs_, x_, load_, image, plan_.height.input, plan_.width.input, at);
      }
      held = under;
      ahead_.clear();
      if (end < band.end) {
        look_ahead(image, {under.end, plan_.height.under(end, std::min(band.end, end + together_)).end});
      } else if (next < plan_.items()) {
        const Range after = plan_.band(next);
        look_ahead(next / plan_.bands, plan_.height.under(after.begin, std::min(after.end, after.begin + together_)));
      }
      compute(image, row, end);
    }
  }

 private:
  const StageLoad& load_;
  Activation activation_;
  const void* x_;
  void* y_;
  bool stream_;
  double* sums_;
  int64_t size_;  // of an element
  RowRing inputs_;
  int64_t together_;

  void look_ahead(int64_t image, Range rows) {
    const int64_t width = plan_.width.input;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      expect(ahead_, advanced(x_, at(image, plan_.height.input, width, row) * size_), width);
    }
  }

  void compute(int64_t image, int64_t begin, int64_t end) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const PlaneRows rows = {inputs_.block(0), inputs_.block_floats(), 0, 0, height.input, inputs_.offsets()};
    void* out = advanced(y_, at(image, height.output, width.output, begin) * size_);
    PlaneConv job = forward(0, rows, {begin, end}, activation_, out, plan_.pixel_stride);
    job.blocks = group_;
    job.plane_stride = inputs_.block_floats();
    job.weight_stride = plan_.block_weights() * plan_.lanes;
    job.out_block_stride = plan_.lanes;
    job.channels = valid(group_ - 1);
    job.moments = sums_ != nullptr ? sums_ + channel() : nullptr;
    job.moments_stride = plan_.padded();
    job.stream = stream_;
    job.prefetch = share(1);
    plan_.run(job);
  }
};

}  // namespace

void depthwise_rows_forward(RowsPlan& plan, const WeightSources& weights, const StageLoad& load, Activation activation,
                            const void* x, void* y, double* sums) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts();
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats());
  const int64_t sums_size = sums != nullptr ? 2 * plan.padded() : 0;
  const int64_t sums_at = layout.add_doubles(parts * sums_size);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  auto* part_sums = reinterpret_cast<double*>(memory + sums_at);
  const int64_t pixels = problem.batch * problem.output[1] * problem.output[2];
  // Of a forward alone, what stays in the last cache is stored there.
  const int64_t elements = input_elements(problem) + pixels * problem.channels;
  const bool stream = (sums != nullptr || elements * element_bytes(problem.element_type) > kCachedBytes) &&
                      streams(problem.element_type, y, pixels, problem.channels, plan.pixel_stride,
                              sums != nullptr ? kTrainingStreamBytes : kForwardStreamBytes);
  run_parts(plan, ForwardRows::floats(plan), [&](int64_t part, int64_t first_block, float* panel) {
    return ForwardRows(plan, first_block, load, activation, x, y, stream,
                       sums != nullptr ? part_sums + part * sums_size : nullptr, panel);
  });
  if (sums != nullptr) add_moments(part_sums, parts, plan.padded(), problem.channels, sums, plan.pixel_stride);
}

}  // namespace dwsep
