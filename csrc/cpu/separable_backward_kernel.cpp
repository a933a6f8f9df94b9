#include "cpu/separable_backward_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/channels_last.h"
#include "cpu/depthwise_backward_tile.h"
#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"
#include "cpu/plane_plan.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "cpu/tiling.h"

namespace dwsep {
namespace {

class SeparableBackward {
 public:
  SeparableBackward(const ConvProblem& problem, Activation activation, const SeparableBackwardTensors& tensors)
      : problem_(problem),
        tensors_(tensors),
        activation_(activation),
        plan_(kernels(), problem, TilePurpose::kBackwardWhole, true),
        rows_per_image_(problem.output[kDepth] * problem.output[kHeight]) {
    const int64_t lanes = plan_.lanes;
    k_blocks_ = ceil_div(problem.out_channels, lanes);
    inner_blocks_ = plan_.blocks * problem.multiplier;
    column_blocks_ = ceil_div(inner_blocks_ * lanes, plan_.table.tile_columns);
    vectors_ = plan_.table.tile_columns / lanes;
    depthwise_tensors_ = {nullptr,
                          {},
                          tensors.x,
                          channels_last_strides(problem.input, problem.channels),
                          tensors.x_gradient,
                          channels_last_strides(problem.input, problem.channels),
                          tensors.depthwise_gradient,
                          tensors.depthwise_bias_gradient};
    const int64_t bytes_of_pixel = (k_blocks_ + inner_blocks_) * lanes * static_cast<int64_t>(sizeof(float));
    const int64_t fit = l2_cache_bytes() / 2 / bytes_of_pixel;
    tile_pixels_ = std::clamp<int64_t>(fit, 2 * plan_.table.tile_pixels, 14 * plan_.table.tile_pixels);
    const int64_t x_pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
    stream_ = problem.multiplier == 1 &&
              streams_from_planes(problem.element_type, tensors.x_gradient, depthwise_tensors_.x_gradient_strides,
                                  x_pixels, problem.channels);
    const int64_t elements = 2 * x_pixels * problem.channels +
                             problem.batch * rows_per_image_ * problem.output[kWidth] * problem.out_channels;
    ask_ = elements * plan_.element_size > kCachedBytes;
    // Of small images several, so that the pointwise gradient's sums are not read and written for a few pixels.
    const int64_t pixels = std::max<int64_t>(1, rows_per_image_ * problem.output[kWidth]);
    images_together_ = std::max<int64_t>(1, tile_pixels_ / pixels);
  }

  void run(const WeightSources& weights, bool add_depthwise);

 private:
  const ConvProblem& problem_;
  const SeparableBackwardTensors& tensors_;
  Activation activation_;
  PlanePlan plan_;
  DepthwiseBackwardTensors depthwise_tensors_;
  int64_t rows_per_image_;
  int64_t k_blocks_;       // of the output's channels, a vector each
  int64_t inner_blocks_;   // of the depthwise output's, in the order [m][input block][lane]
  int64_t column_blocks_;  // of the same, a micro-kernel's columns each
  int64_t vectors_;        // of a column block
  int64_t tile_pixels_;    // at most
  int64_t images_together_;
  bool stream_;                           // store the gradient of x past the caches
  bool ask_;                              // for what comes next: it is not in a cache
  const float* transposed_ = nullptr;     // the pointwise weight [column block][k][column]
  const float* panel_weights_ = nullptr;  // the depthwise weight [m][input block][tap][lane], then its bias

  bool wants_below() const {
    return tensors_.x_gradient != nullptr || tensors_.depthwise_gradient != nullptr ||
           tensors_.depthwise_bias_gradient != nullptr;
  }
  int64_t k_padded() const { return k_blocks_ * plan_.lanes; }
  int64_t inner_padded() const { return inner_blocks_ * plan_.lanes; }
  // The depthwise output's channel at a place in the order of the panels, or -1.
  int64_t inner_channel(int64_t place) const {
    const int64_t padded = plan_.blocks * plan_.lanes, channel = place % padded;
    const bool inside = place < inner_padded() && channel < problem_.channels;
    return inside ? channel * problem_.multiplier + place / padded : -1;
  }
  int64_t pointwise_sums() const { return tensors_.pointwise_gradient != nullptr ? k_padded() * inner_padded() : 0; }
  int64_t planes_of_image() const { return inner_blocks_ * plan_.g_plane; }
  // One part's sums: [k][c] of the pointwise weight, [k] of its bias.
  int64_t part_floats() const { return pointwise_sums() + k_padded(); }

  template <class T>
  void pack_transposed(const T* pointwise, bool add_depthwise, float* transposed) const;
  void pack_panel_weights(float* target) const;
  int64_t panel_floats() const { return tile_pixels_ * plan_.lanes * (k_blocks_ + inner_blocks_ + vectors_); }
  void run_rows(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums, bool first) const;
  void run_tile(const Tile& tile, int64_t first_image, float* panels, float* planes, float* sums, bool first) const;
  Prefetch next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t parts) const;
  void copy_to_plane(const Tile& tile, const float* source, float* plane, int64_t first_image) const;
  void run_by_image(int64_t parts, float* sums, float* depthwise_sums) const;
  int64_t rows_before(int64_t tile) const;
  void run_below(BackwardTile& tile, int64_t image, int64_t of_image, const float* planes, int64_t block_begin,
                 int64_t block_end) const;
  void run_by_phase(int64_t parts, float* sums, float* depthwise_sums) const;
  void clear_margins(float* planes) const;
  void write_pointwise_gradients(const float* sums, int64_t parts) const;
};

template <class T>
void SeparableBackward::pack_transposed(const T* pointwise, bool add_depthwise, float* transposed) const {
  const int64_t columns = plan_.table.tile_columns, inner = problem_.inner_channels;
  const int64_t grain = std::max<int64_t>(1, 32768 / (k_padded() * columns));
  parallel_for(column_blocks_, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* target = transposed + block * k_padded() * columns;
      std::fill_n(target, k_padded() * columns, 0.0f);
      int64_t run = 0;
      for (int64_t column = 0; column < columns; column += run) {
        // Channels that follow each other are copied as one.
        const int64_t channel = inner_channel(block * columns + column);
        run = 1;
        if (channel < 0) continue;
        while (column + run < columns && inner_channel(block * columns + column + run) == channel + run) ++run;
        for (int64_t k = 0; k < problem_.out_channels; ++k) {
          const T* source = pointwise + k * inner + channel;
          float* out = target + k * columns + column;
          for (int64_t i = 0; i < run; ++i) out[i] = as_float(source[i]);
          if (add_depthwise && k >= channel && k < channel + run) out[k - channel] += 1.0f;
        }
      }
    }
  });
}

// plan_.weights has the multiples of an input block next to each other; a panel takes all input blocks of one multiple.
void SeparableBackward::pack_panel_weights(float* target) const {
  const int64_t multiplier = problem_.multiplier, block_floats = plan_.taps * plan_.lanes;
  float* bias = target + inner_blocks_ * block_floats;
  for (int64_t m = 0; m < multiplier; ++m) {
    for (int64_t block = 0; block < plan_.blocks; ++block) {
      const int64_t from = block * multiplier + m, to = m * plan_.blocks + block;
      std::copy_n(plan_.weights + from * block_floats, block_floats, target + to * block_floats);
      std::copy_n(plan_.bias + from * plan_.lanes, plan_.lanes, bias + to * plan_.lanes);
    }
  }
}

// The columns of gradient planes that lie outside the output.
void SeparableBackward::clear_margins(float* planes) const {
  const AxisTile &td = plan_.tiles[kDepth][0], &th = plan_.tiles[kHeight][0], &tw = plan_.tiles[kWidth][0];
  const Range& range = tw.gradient;
  const int64_t begin = std::clamp<int64_t>(0, range.begin, range.end) - range.begin;
  const int64_t end = std::clamp(problem_.output[kWidth], range.begin, range.end) - range.begin;
  const int64_t lanes = plan_.lanes;
  for (int64_t block = 0; block < inner_blocks_; ++block) {
    for (int64_t row = 0; row < td.gradient.size() * th.gradient.size(); ++row) {
      float* first = planes + block * plan_.g_plane + row * range.size() * lanes;
      std::fill_n(first, begin * lanes, 0.0f);
      std::fill_n(first + end * lanes, (range.size() - end) * lanes, 0.0f);
    }
  }
}

void SeparableBackward::run_tile(const Tile& tile, int64_t first_image, float* panels, float* planes, float* sums,
                                 bool first) const {
  const int64_t lanes = plan_.lanes, columns = tile.column_end - tile.column_begin;
  const int64_t pixels = (tile.row_end - tile.row_begin) * columns;
  float* gradient = panels;
  float* depthwise = gradient + k_blocks_ * pixels * lanes;
  float* product = depthwise + inner_blocks_ * pixels * lanes;

  // A tile's pixels are consecutive in the output.
  const int64_t first_pixel = tile.row_begin * problem_.output[kWidth] + tile.column_begin;
  const RowCopy copy = {problem_.element_type, problem_.out_channels, 1, pixels, problem_.out_channels, pixels * lanes};
  plan_.table.gather_row(copy, advanced(tensors_.gradient, first_pixel * problem_.out_channels * plan_.element_size),
                         gradient);
  if (tensors_.pointwise_bias_gradient != nullptr) {
    float* bias_sums = sums + pointwise_sums();
    for (int64_t block = 0; block < k_blocks_; ++block) {
      plan_.table.sum_row(gradient + block * pixels * lanes, pixels, bias_sums + block * lanes);
    }
  }
  // Both products take about the same time, and each asks for its share of what the next tile reads.
  const int64_t multiplied = wants_below() ? column_blocks_ : 0;
  const int64_t shares = tensors_.pointwise_gradient == nullptr ? multiplied : std::max<int64_t>(1, 2 * multiplied);
  const bool activated = activation_ != Activation::kNone;
  if (tensors_.pointwise_gradient != nullptr || (activated && wants_below())) {
    ConvProblem one = problem_;
    one.multiplier = 1;
    one.inner_channels = one.channels;
    for (int64_t m = 0; m < problem_.multiplier; ++m) {
      const float* first = panel_weights_ + m * plan_.blocks * plan_.taps * lanes;
      const float* bias = panel_weights_ + inner_blocks_ * plan_.taps * lanes + m * plan_.blocks * lanes;
      plan_.table.depthwise_panel(one, {first, bias, nullptr, nullptr}, Activation::kNone, tensors_.x, tile,
                                  depthwise + m * plan_.blocks * pixels * lanes);
    }
  }
  if (wants_below()) {
    PanelProduct job = {
        gradient, k_blocks_, pixels, transposed_, product, problem_.out_channels, plan_.table.tile_columns, {}};
    for (int64_t block = 0; block < column_blocks_; ++block) {
      job.prefetch = next_pixels(tile, block, block + 1, shares);
      plan_.table.multiply_panel(job, block);
      const int64_t stop = std::min(vectors_, inner_blocks_ - block * vectors_);
      for (int64_t vector = 0; vector < stop; ++vector) {
        const int64_t place = block * vectors_ + vector;
        float* source = product + vector * pixels * lanes;
        if (activated) {
          plan_.table.activation_gradient_row(activation_, depthwise + place * pixels * lanes, source, pixels);
        }
        const int64_t plane = place % plan_.blocks * problem_.multiplier + place / plan_.blocks;
        copy_to_plane(tile, source, planes + plane * plan_.g_plane, first_image);
      }
    }
  }
  if (tensors_.pointwise_gradient != nullptr) {
    if (activated) plan_.table.activate_row(activation_, depthwise, inner_blocks_ * pixels);
    plan_.table.outer_product({gradient, k_padded(), depthwise, inner_blocks_, pixels, sums, k_padded() * lanes, first,
                               next_pixels(tile, multiplied, shares, shares)});
  }
}

// Of what the tile behind `tile` reads, shares [begin, end) of `shares`: as many pixels more of the output's gradient
// and, behind whole rows, the input rows that only they meet.
Prefetch SeparableBackward::next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t shares) const {
  if (!ask_) return {};
  const auto share = [&](const void* tensor, int64_t first, int64_t count, int64_t size) {
    const int64_t from = first + count * begin / shares, to = std::min(first + count * end / shares, size);
    const void* at = advanced(tensor, from * plan_.element_size);
    return MemoryRange{at, std::max<int64_t>(0, to - from) * plan_.element_size};
  };
  const int64_t columns = problem_.output[kWidth], rows = tile.row_end - tile.row_begin;
  const int64_t pixels = rows * (tile.column_end - tile.column_begin), outputs = problem_.out_channels;
  const bool whole = tile.column_end == columns;
  const int64_t next = whole ? tile.row_end * columns : tile.row_begin * columns + tile.column_end;
  Prefetch ahead = {
      {share(tensors_.gradient, next * outputs, pixels * outputs, problem_.batch * rows_per_image_ * columns * outputs),
       {},
       {}}};
  if (whole && problem_.input[kDepth] == 1) {
    const ConvAxis& height = plan_.axes[kHeight];
    const int64_t last = tile.row_end - 1, line = problem_.input[kWidth] * problem_.channels;
    const int64_t met = height.position(last % height.output, height.kernel - 1) + 1;
    const int64_t row = last / height.output * height.input + std::clamp<int64_t>(met, 0, height.input);
    ahead.ranges[1] = share(tensors_.x, row * line, rows * height.stride * line, problem_.batch * height.input * line);
  }
  return ahead;
}

// A tile's pixels into the plane of their image, whose rows are longer; `plane` is that of the first image.
void SeparableBackward::copy_to_plane(const Tile& tile, const float* source, float* plane, int64_t first_image) const {
  const Range &depth = plan_.tiles[kDepth][0].gradient, &height = plan_.tiles[kHeight][0].gradient;
  const Range& width = plan_.tiles[kWidth][0].gradient;
  const int64_t floats = (tile.column_end - tile.column_begin) * plan_.lanes;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row, source += floats) {
    const int64_t oh = row % problem_.output[kHeight], od = row / problem_.output[kHeight] % problem_.output[kDepth];
    const int64_t at =
        ((od - depth.begin) * height.size() + (oh - height.begin)) * width.size() + (tile.column_begin - width.begin);
    const int64_t image = row / rows_per_image_ - first_image;
    std::copy_n(source, floats, plane + image * planes_of_image() + at * plan_.lanes);
  }
}

// Output rows [row_begin, row_end); `planes` are those of the first one's image and the images behind it. With `first`
// the sums hold nothing yet.
void SeparableBackward::run_rows(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums,
                                 bool first) const {
  ConvProblem band = problem_;
  band.batch = 1;
  band.output[kDepth] = 1;
  band.output[kHeight] = row_end - row_begin;
  const Tiling tiling(band, tile_pixels_, 1, 1);
  for (int64_t i = 0; i < tiling.count(); ++i) {
    Tile tile = tiling[i];
    tile.row_begin += row_begin;
    tile.row_end += row_begin;
    run_tile(tile, row_begin / rows_per_image_, panels, planes, sums, first && i == 0);
  }
}

// Every thread does whole images from beginning to end: what it computes of one is still in its cache.
void SeparableBackward::run_by_image(int64_t parts, float* sums, float* depthwise_sums) const {
  const int64_t depthwise_part = plan_.blocks * sums_of_block(plan_);
  Layout layout;
  const int64_t planes_at = layout.add(wants_below() ? images_together_ * planes_of_image() : 0);
  const int64_t panels_at = layout.add(panel_floats());
  const int64_t tile_at = layout.add(BackwardTile::floats_without_gradient(plan_));
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(layout.size()));
    float* planes = memory + planes_at;
    for (int64_t i = 0; wants_below() && i < images_together_; ++i) clear_margins(planes + i * planes_of_image());
    for (int64_t part = begin; part < end; ++part) {
      BackwardTile tile(plan_, depthwise_tensors_, Activation::kNone, memory + tile_at,
                        depthwise_sums + part * depthwise_part);
      if (stream_) tile.set_stream();
      const int64_t first = problem_.batch * part / parts, stop = problem_.batch * (part + 1) / parts;
      for (int64_t image = first; image < stop; image += images_together_) {
        const int64_t next = std::min(image + images_together_, stop);
        const int64_t begin = image * rows_per_image_, end = next * rows_per_image_;
        int64_t done = begin;
        const auto run_until = [&](int64_t row) {
          if (row <= done) return;
          run_rows(done, row, memory + panels_at, planes, sums + part * part_floats(), done == first * rows_per_image_);
          done = row;
        };
        if (next - image > 1 || !wants_below()) run_until(end);
        for (int64_t i = image; wants_below() && i < next; ++i) {
          const float* own = planes + (i - image) * planes_of_image();
          // A tile as soon as the rows that it takes are there: the input's are still in the cache, too.
          for (int64_t t = 0; t < plan_.tile_count(); ++t) {
            run_until(begin + rows_before(t));
            run_below(tile, i, t, own, 0, plan_.blocks);
          }
        }
        run_until(end);
      }
    }
    plan_.table.finish_streams();
  });
}

// Output rows of an image that the gradients of one of its tiles take.
int64_t SeparableBackward::rows_before(int64_t tile) const {
  const auto widths = static_cast<int64_t>(plan_.tiles[kWidth].size());
  const auto heights = static_cast<int64_t>(plan_.tiles[kHeight].size());
  const auto stop = [&](Axis axis, int64_t index) {
    const AxisTile& part = plan_.tiles[axis][static_cast<std::size_t>(index)];
    const ConvAxis& a = plan_.axes[axis];
    const int64_t reached = floor_div(part.input.end - 1 + a.pad_low, a.stride) + 1;
    return std::max(part.output.end, std::clamp<int64_t>(reached, 0, a.output));
  };
  const int64_t depth = stop(kDepth, tile / widths / heights), height = stop(kHeight, tile / widths % heights);
  return std::max<int64_t>(0, (depth - 1) * problem_.output[kHeight] + height);
}

// The depthwise gradients of one tile of an image, for the groups of channel blocks that begin in [block_begin,
// block_end).
void SeparableBackward::run_below(BackwardTile& tile, int64_t image, int64_t of_image, const float* planes,
                                  int64_t block_begin, int64_t block_end) const {
  for (int64_t block = block_begin; block < block_end; block += plan_.group) {
    tile.run_on(image, of_image, block, planes + block * problem_.multiplier * plan_.g_plane);
  }
}

// Few images: first their rows in parts, then, when all are done, their channels.
void SeparableBackward::run_by_phase(int64_t parts, float* sums, float* depthwise_sums) const {
  const int64_t bands = parts / problem_.batch;
  float* planes = scratch(Scratch::kPlanes, static_cast<std::size_t>(problem_.batch * planes_of_image()));
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    float* panels = scratch(Scratch::kPanel, static_cast<std::size_t>(panel_floats()));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t image = part / bands, band = part % bands;
      float* own = planes + image * planes_of_image();
      run_rows(image * rows_per_image_ + rows_per_image_ * band / bands,
               image * rows_per_image_ + rows_per_image_ * (band + 1) / bands, panels, own, sums + part * part_floats(),
               true);
    }
  });
  if (!wants_below()) return;
  for (int64_t image = 0; image < problem_.batch; ++image) clear_margins(planes + image * planes_of_image());
  parallel_for(plan_.groups(), 1, [&](int64_t begin, int64_t end) {
    const std::size_t floats = static_cast<std::size_t>(BackwardTile::floats_without_gradient(plan_));
    BackwardTile tile(plan_, depthwise_tensors_, Activation::kNone, scratch(Scratch::kPanel, floats), depthwise_sums);
    if (stream_) tile.set_stream();
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t image = 0; image < problem_.batch; ++image) {
        for (int64_t t = 0; t < plan_.tile_count(); ++t) {
          run_below(tile, image, t, planes + image * planes_of_image(), group * plan_.group, (group + 1) * plan_.group);
        }
      }
    }
    plan_.table.finish_streams();
  });
}

void SeparableBackward::write_pointwise_gradients(const float* sums, int64_t parts) const {
  const int64_t size = part_floats(), lanes = plan_.lanes, inner = problem_.inner_channels;
  const bool plain = problem_.multiplier == 1 && problem_.element_type == ElementType::kFloat32;
  // A vector of channels at a time, which is how the sums lie in memory.
  parallel_for(tensors_.pointwise_gradient != nullptr ? inner_blocks_ : 0, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<std::size_t>(k_padded() * lanes));
    for (int64_t vector = begin; vector < end; ++vector) {
      const float* source = sums + vector * k_padded() * lanes;
      if (parts > 1) {
        std::copy_n(source, k_padded() * lanes, sum.data());
        for (int64_t part = 1; part < parts; ++part) {
          for (int64_t i = 0; i < k_padded() * lanes; ++i) sum[static_cast<std::size_t>(i)] += source[part * size + i];
        }
        source = sum.data();
      }
      const int64_t valid = std::min(lanes, problem_.channels - vector % plan_.blocks * lanes);
      for (int64_t k = 0; k < problem_.out_channels; ++k) {
        const int64_t at = k * inner + inner_channel(vector * lanes);
        if (plain) {
          std::copy_n(source + k * lanes, valid, static_cast<float*>(tensors_.pointwise_gradient) + at);
          continue;
        }
        for (int64_t lane = 0; lane < valid; ++lane) {
          store_element(tensors_.pointwise_gradient, problem_.element_type, at + lane * problem_.multiplier,
                        source[k * lanes + lane]);
        }
      }
    }
  });
  for (int64_t k = 0; tensors_.pointwise_bias_gradient != nullptr && k < problem_.out_channels; ++k) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * size + pointwise_sums() + k];
    store_element(tensors_.pointwise_bias_gradient, problem_.element_type, k, sum);
  }
}

int64_t power_of_two_below(int64_t value) {
  int64_t power = 1;
  while (power * 2 <= value) power *= 2;
  return power;
}

void SeparableBackward::run(const WeightSources& weights, bool add_depthwise) {
  // Parts have sums of their own, added in order at the end. Their number depends on the shape alone, so that the
  // result does not depend on the threads; a part has pixels enough for that sum to cost little.
  const int64_t batch = problem_.batch;
  const int64_t pixels = batch * rows_per_image_ * problem_.output[kWidth];
  const bool by_image = batch >= 4 || batch == 0;
  int64_t parts = power_of_two_below(std::clamp<int64_t>(pixels / 128, 2, 8));
  if (by_image) {
    parts = std::min(parts, power_of_two_below(std::max<int64_t>(1, batch)));
  } else {
    const int64_t bands = ceil_div(parts, batch);
    parts = batch * std::clamp<int64_t>(bands, 1, rows_per_image_);
  }
  const int64_t depthwise_parts = by_image ? parts : 1;
  const int64_t depthwise_part = plan_.blocks * sums_of_block(plan_);
  Layout layout;
  const int64_t weights_at = layout.add(plan_.weight_floats());
  const int64_t panel_weights_at = layout.add(plan_.weight_floats());
  const int64_t transposed_at = layout.add(column_blocks_ * k_padded() * plan_.table.tile_columns);
  const int64_t sums_at = layout.add(parts * part_floats());
  const int64_t depthwise_sums_at = layout.add(depthwise_parts * depthwise_part);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  float* sums = memory + sums_at;
  float* depthwise_sums = memory + depthwise_sums_at;
  plan_.pack(weights, memory + weights_at);
  pack_panel_weights(memory + panel_weights_at);
  panel_weights_ = memory + panel_weights_at;
  if (wants_below()) {
    if (problem_.element_type == ElementType::kFloat32) {
      pack_transposed(static_cast<const float*>(weights.pointwise), add_depthwise, memory + transposed_at);
    } else {
      pack_transposed(static_cast<const uint16_t*>(weights.pointwise), add_depthwise, memory + transposed_at);
    }
  }
  transposed_ = memory + transposed_at;
  // The first tile of a part writes the pointwise weight's sums, whatever was there.
  const int64_t written = batch > 0 ? pointwise_sums() : 0;
  for (int64_t part = 0; part < parts; ++part) {
    std::fill_n(sums + part * part_floats() + written, part_floats() - written, 0.0f);
  }
  std::fill_n(depthwise_sums, depthwise_parts * depthwise_part, 0.0f);
  if (by_image) {
    run_by_image(parts, sums, depthwise_sums);
  } else {
    run_by_phase(parts, sums, depthwise_sums);
  }
  write_pointwise_gradients(sums, parts);
  if (tensors_.depthwise_gradient != nullptr || tensors_.depthwise_bias_gradient != nullptr) {
    write_weight_gradients(problem_, plan_.lanes, depthwise_tensors_, depthwise_sums, depthwise_parts);
  }
}

}  // namespace

void separable_conv_backward(ConvProblem problem, const WeightSources& weights, Activation inner_activation,
                             bool add_depthwise, const SeparableBackwardTensors& tensors) {
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  SeparableBackward(problem, inner_activation, tensors).run(weights, add_depthwise);
}

}  // namespace dwsep
