#include "cpu/separable_backward_kernel.h"

#include <algorithm>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/separable_backward_channels.h"
#include "cpu/separable_backward_plan.h"
#include "cpu/separable_backward_rows.h"
#include "cpu/tiling.h"

namespace dwsep {
namespace {

class SeparableBackward {
 public:
  explicit SeparableBackward(SeparableBackwardPlan& plan) : plan_(plan), rows_(plan) {}

  void run(const WeightSources& weights, bool add_depthwise);

 private:
  SeparableBackwardPlan& plan_;
  SeparableBackwardRows rows_;

  void run_by_channels(const WeightSources& weights, bool add_depthwise);
  void run_by_image(int64_t parts, float* sums, float* depthwise_sums) const;
  void run_by_phase(int64_t parts, int64_t tile_parts, float* sums, float* depthwise_sums) const;
  void write_depthwise_gradients(float* sums, int64_t parts) const;
  int64_t rows_before(int64_t tile) const;
  void run_below(BackwardTile& tile, int64_t image, int64_t of_image, const float* planes, int64_t block_begin,
                 int64_t block_end) const;
};

// Every thread does whole images from beginning to end: what it computes of one is still in its cache.
void SeparableBackward::run_by_image(int64_t parts, float* sums, float* depthwise_sums) const {
  const int64_t depthwise_part = plan_.planes.blocks * sums_of_block(plan_.planes);
  Layout layout;
  const int64_t planes_at = layout.add(plan_.wants_below() ? plan_.images_together * plan_.planes_of_image() : 0);
  const int64_t panels_at = layout.add(plan_.tile_floats());
  const int64_t tile_at = layout.add(BackwardTile::floats_without_gradient(plan_.planes));
  parallel_parts(parts, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(layout.size()));
    float* planes = memory + planes_at;
    for (int64_t i = 0; plan_.wants_below() && i < plan_.images_together; ++i)
      rows_.clear_margins(planes + i * plan_.planes_of_image(), plan_.inner_blocks);
    for (int64_t part = begin; part < end; ++part) {
      BackwardTile tile(plan_.planes, plan_.depthwise_tensors, Activation::kNone, memory + tile_at,
                        depthwise_sums + part * depthwise_part);
      if (plan_.stream) tile.set_stream();
      const int64_t first = plan_.problem.batch * part / parts, stop = plan_.problem.batch * (part + 1) / parts;
      for (int64_t image = first; image < stop; image += plan_.images_together) {
        const int64_t next = std::min(image + plan_.images_together, stop);
        const int64_t begin = image * plan_.rows_per_image, end = next * plan_.rows_per_image;
        int64_t done = begin;
        const auto run_until = [&](int64_t row) {
          if (row <= done) return;
          rows_.run(done, row, memory + panels_at, planes, sums + part * plan_.part_floats(),
                    done == first * plan_.rows_per_image);
          done = row;
        };
        if (next - image > 1 || !plan_.wants_below()) run_until(end);
        for (int64_t i = image; plan_.wants_below() && i < next; ++i) {
          const float* own = planes + (i - image) * plan_.planes_of_image();
          // A tile as soon as the rows that it takes are there: the input's are still in the cache, too.
          for (int64_t t = 0; t < plan_.planes.tile_count(); ++t) {
            run_until(begin + rows_before(t));
            run_below(tile, i, t, own, 0, plan_.planes.blocks);
          }
        }
        run_until(end);
      }
    }
    plan_.planes.table.finish_streams();
  });
}

// Output rows of an image that the gradients of one of its tiles take.
int64_t SeparableBackward::rows_before(int64_t tile) const {
  const auto widths = static_cast<int64_t>(plan_.planes.tiles[kWidth].size());
  const auto heights = static_cast<int64_t>(plan_.planes.tiles[kHeight].size());
  const auto stop = [&](Axis axis, int64_t index) {
    const AxisTile& part = plan_.planes.tiles[axis][static_cast<std::size_t>(index)];
    const ConvAxis& a = plan_.planes.axes[axis];
    const int64_t reached = floor_div(part.input.end - 1 + a.pad_low, a.stride) + 1;
    return std::max(part.output.end, std::clamp<int64_t>(reached, 0, a.output));
  };
  const int64_t depth = stop(kDepth, tile / widths / heights), height = stop(kHeight, tile / widths % heights);
  return std::max<int64_t>(0, (depth - 1) * plan_.problem.output[kHeight] + height);
}

// The depthwise gradients of one tile of an image, for the groups of channel blocks that begin in [block_begin,
// block_end).
void SeparableBackward::run_below(BackwardTile& tile, int64_t image, int64_t of_image, const float* planes,
                                  int64_t block_begin, int64_t block_end) const {
  for (int64_t block = block_begin; block < block_end; block += plan_.planes.group) {
    tile.run_on(image, of_image, block, planes + block * plan_.problem.multiplier * plan_.planes.g_plane);
  }
}

// Few images: first their rows in parts, then, when all are done, their channels, of few channels by tiles in parts.
void SeparableBackward::run_by_phase(int64_t parts, int64_t tile_parts, float* sums, float* depthwise_sums) const {
  const int64_t bands = parts / plan_.problem.batch;
  float* planes = scratch(Scratch::kPlanes, static_cast<std::size_t>(plan_.problem.batch * plan_.planes_of_image()));
  parallel_parts(parts, [&](int64_t begin, int64_t end) {
    float* panels = scratch(Scratch::kPanel, static_cast<std::size_t>(plan_.tile_floats()));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t image = part / bands, band = part % bands, rows = plan_.rows_per_image;
      rows_.run(image * rows + rows * band / bands, image * rows + rows * (band + 1) / bands, panels,
                planes + image * plan_.planes_of_image(), sums + part * plan_.part_floats(), true);
    }
  });
  if (!plan_.wants_below()) return;
  for (int64_t image = 0; image < plan_.problem.batch; ++image)
    rows_.clear_margins(planes + image * plan_.planes_of_image(), plan_.inner_blocks);
  const int64_t depthwise_part = plan_.planes.blocks * sums_of_block(plan_.planes), tiles = plan_.planes.tile_count();
  parallel_runs(plan_.planes.groups() * tile_parts, [&](int64_t begin, int64_t end) {
    const std::size_t floats = static_cast<std::size_t>(BackwardTile::floats_without_gradient(plan_.planes));
    float* memory = scratch(Scratch::kPanel, floats);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / tile_parts, part = unit % tile_parts;
      BackwardTile tile(plan_.planes, plan_.depthwise_tensors, Activation::kNone, memory,
                        depthwise_sums + part * depthwise_part);
      if (plan_.stream) tile.set_stream();
      for (int64_t image = 0; image < plan_.problem.batch; ++image) {
        for (int64_t t = tiles * part / tile_parts; t < tiles * (part + 1) / tile_parts; ++t) {
          run_below(tile, image, t, planes + image * plan_.planes_of_image(), group * plan_.planes.group,
                    (group + 1) * plan_.planes.group);
        }
      }
    }
    plan_.planes.table.finish_streams();
  });
}

int64_t power_of_two_below(int64_t value) {
  int64_t power = 1;
  while (power * 2 <= value) power *= 2;
  return power;
}

void SeparableBackward::run_by_channels(const WeightSources& weights, bool add_depthwise) {
  const int64_t depthwise_part = plan_.planes.blocks * sums_of_block(plan_.planes);
  Layout layout;
  const int64_t packed_at = layout.add(plan_.depthwise_floats());
  const int64_t depthwise_sums_at = layout.add(depthwise_part);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan_.pack_depthwise(weights, memory + packed_at);
  std::fill_n(memory + depthwise_sums_at, depthwise_part, 0.0f);
  SeparableBackwardChannels(plan_, weights, add_depthwise).run(memory + depthwise_sums_at);
  write_depthwise_gradients(memory + depthwise_sums_at, 1);
}

void SeparableBackward::write_depthwise_gradients(float* sums, int64_t parts) const {
  if (plan_.tensors.depthwise_gradient == nullptr && plan_.tensors.depthwise_bias_gradient == nullptr) return;
  write_weight_gradients(plan_.problem, plan_.planes.lanes, plan_.depthwise_tensors, sums, parts);
}

void SeparableBackward::run(const WeightSources& weights, bool add_depthwise) {
  if (plan_.by_channels) return run_by_channels(weights, add_depthwise);
  // Parts have sums of their own, added in order at the end. Their number depends on the shape alone, so that the
  // result does not depend on the threads; a part has pixels enough for that sum to cost little.
  const int64_t batch = plan_.problem.batch;
  const int64_t pixels = batch * plan_.rows_per_image * plan_.problem.output[kWidth];
  const bool by_image = batch >= 4 || batch == 0;
  int64_t parts = power_of_two_below(std::clamp<int64_t>(pixels / 128, 2, 8));
  if (by_image) {
    parts = std::min(parts, power_of_two_below(std::max<int64_t>(1, batch)));
  } else {
    const int64_t bands = ceil_div(parts, batch);
    parts = batch * std::clamp<int64_t>(bands, 1, plan_.rows_per_image);
  }
  // Channels that make a few groups alone leave threads without any.
  constexpr int64_t kManyGroups = 8, kTileParts = 4;
  const bool by_tile = plan_.planes.groups() < kManyGroups;
  const int64_t tile_parts = by_tile ? power_of_two_below(std::min(kTileParts, plan_.planes.tile_count())) : 1;
  const int64_t depthwise_parts = by_image ? parts : tile_parts;
  const int64_t depthwise_part = plan_.planes.blocks * sums_of_block(plan_.planes);
  Layout layout;
  const int64_t packed_at = layout.add(plan_.packed_floats());
  const int64_t sums_at = layout.add(parts * plan_.part_floats());
  const int64_t depthwise_sums_at = layout.add(depthwise_parts * depthwise_part);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float* sums = memory + sums_at;
  float* depthwise_sums = memory + depthwise_sums_at;
  plan_.pack(weights, add_depthwise, memory + packed_at);
  // The first tile of a part writes the pointwise weight's sums, whatever was there.
  const int64_t written = batch > 0 ? plan_.pointwise_sums() : 0;
  for (int64_t part = 0; part < parts; ++part) {
    std::fill_n(sums + part * plan_.part_floats() + written, plan_.part_floats() - written, 0.0f);
  }
  std::fill_n(depthwise_sums, depthwise_parts * depthwise_part, 0.0f);
  if (by_image) {
    run_by_image(parts, sums, depthwise_sums);
  } else {
    run_by_phase(parts, tile_parts, sums, depthwise_sums);
  }
  plan_.write_pointwise_gradients(sums, parts);
  write_depthwise_gradients(depthwise_sums, depthwise_parts);
}

}  // namespace

void separable_conv_backward(ConvProblem problem, const WeightSources& weights, Activation inner_activation,
                             bool add_depthwise, const SeparableBackwardTensors& tensors) {
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  SeparableBackwardPlan plan(problem, inner_activation, tensors);
  SeparableBackward(plan).run(weights, add_depthwise);
}

}  // namespace dwsep
