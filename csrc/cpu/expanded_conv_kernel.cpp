#include "cpu/expanded_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/depthwise_conv_kernel.h"
#include "cpu/isa.h"
#include "cpu/panel_operands.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_conv_kernel.h"
#include "cpu/scratch.h"
#include "cpu/separable_conv_kernel.h"
#include "cpu/stage_gate_kernel.h"
#include "cpu/workspace.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
// Rows at the seams are widened twice: a thread needs so many of its own for that to pay.
constexpr int64_t kLeastRows = 6;
constexpr int64_t kMostLanes = 16;

// The shape of the problem's planes: input rows with zeros on both sides, as far as taps reach.
struct PlaneShape {
  int64_t left, origin, pitch, right_begin;  // floats: before column 0, of output column 0's first tap, of a row

  PlaneShape(const ConvProblem& p, int64_t lanes) {
    const int64_t last = (p.output[2] - 1) * p.stride[2] - p.pad_low[2] + (p.kernel[2] - 1) * p.dilation[2];
    left = std::max<int64_t>(0, p.pad_low[2]) * lanes;
    origin = left - p.pad_low[2] * lanes;
    right_begin = left + p.input[2] * lanes;
    pitch = right_begin + std::max<int64_t>(0, last + 1 - p.input[2]) * lanes;
  }

  void clear_sides(float* plane, int64_t rows) const {
    for (int64_t row = 0; row < rows; ++row, plane += pitch) {
      std::fill_n(plane, left, 0.0f);
      std::fill(plane + right_begin, plane + pitch, 0.0f);
    }
  }
};

// What both ways through a problem share: one image's input as a panel, and K block after K block of the wide channels.
class Expansion {
 public:
  Expansion(const ExpandedConv& conv)
      : conv(conv),
        p(conv.problem),
        table(kernels()),
        shape(p, table.lanes),
        widen(table, conv.channels, p.channels, conv.expansion),
        widens(conv.expansion != nullptr),
        vectors(table.tile_columns / table.lanes),
        reach((p.kernel[1] - 1) * p.dilation[1]) {}

  const ExpandedConv& conv;
  const ConvProblem& p;
  const KernelTable& table;
  PlaneShape shape;
  PackedPointwise widen;
  bool widens;
  int64_t vectors, reach;
  float* row_sums = nullptr;  // [output row][padded channels]

  int64_t lane_blocks() const { return ceil_div(p.channels, table.lanes); }
  int64_t padded() const { return lane_blocks() * table.lanes; }
  int64_t panel_floats(int64_t rows) const { return widens ? rows * p.input[2] * widen.inner : 0; }
  int64_t planes_floats(int64_t rows) const { return vectors * rows * shape.pitch; }
  int64_t position(int64_t row) const { return row * p.stride[1] - p.pad_low[1]; }
  // The input rows that output rows [begin, end) read; where all taps lie in the padding, one row stands for them.
  Range rows_under(int64_t begin, int64_t end) const {
    const int64_t low = std::clamp<int64_t>(position(begin), 0, p.input[1] - 1);
    return {low, std::clamp<int64_t>(position(end - 1) + reach + 1, low + 1, p.input[1])};
  }

  // Rows of an image as [inner block][pixel][lane], to be widened.
  void fill_panel(int64_t image, Range rows, float* panel) const {
    if (!widens) return;
    const int64_t pixels = rows.size() * p.input[2];
    table.stage_row({conv.x + (image * p.input[1] + rows.begin) * p.input[2] * conv.x_stride, nullptr, nullptr, nullptr,
                     Activation::kNone, conv.x_stride, pixels, conv.channels, panel, pixels * table.lanes});
    if (conv.pairs) pair_panel_in_place(table, widen.inner, pixels, panel);
  }

  // K block `block` of the input rows `have` but for the first `kept`, into planes of all of them.
  void fill_planes(int64_t image, const float* panel, Range have, int64_t kept, int64_t block, float* planes) const {
    const int64_t lanes = table.lanes, columns = p.input[2], rows = have.size(), first = block * table.tile_columns;
    float* target = planes + kept * shape.pitch + shape.left;
    if (widens) {
      table.expand_planes({panel + kept * columns * lanes, rows * columns * lanes, conv.channels, rows - kept, columns,
                           p.channels, widen.weights, widen.bias, block, conv.expansion_activation, target, shape.pitch,
                           rows * shape.pitch, conv.pairs ? Operands::kPairs : Operands::kFloats});
      return;
    }
    const int64_t stride = conv.x_stride;
    const float* x = conv.x + (image * p.input[1] + have.begin + kept) * columns * stride + first;
    const int64_t channels = std::min(table.tile_columns, p.channels - first);
    for (int64_t row = kept; row < rows; ++row, x += columns * stride, target += shape.pitch) {
      table.stage_row(
          {x, nullptr, nullptr, nullptr, Activation::kNone, stride, columns, channels, target, rows * shape.pitch});
    }
  }

  // Output rows [begin, end) of an image and the channels of a K block, from planes of the input rows `have`: into the
  // panel `made` of these rows where a pointwise factor follows, else to where they lie in the output.
  void convolve(int64_t image, const float* planes, Range have, int64_t begin, int64_t end, int64_t block,
                float* made) const {
    const int64_t lanes = table.lanes, taps = p.kernel[1] * p.kernel[2], first = image * p.output[1] + begin;
    float* out = conv.separable ? made : conv.out + first * p.output[2] * conv.out_stride;
    const int64_t pixel_stride = conv.separable ? lanes : conv.out_stride;
    const int64_t vector_stride = conv.separable ? (end - begin) * p.output[2] * lanes : lanes;
    for (int64_t vector = 0; vector < vectors; ++vector) {
      const int64_t at = block * vectors + vector;
      if (at >= lane_blocks()) return;
      // Of a panel, the lanes behind the last channel are read, too.
      const int64_t channels = conv.separable ? lanes : std::min(lanes, p.channels - at * lanes);
      table.plane_conv({planes + vector * have.size() * shape.pitch + shape.origin,
                        shape.pitch,
                        have.size(),
                        position(begin) - have.begin,
                        end - begin,
                        p.output[2],
                        {p.kernel[1], p.kernel[2]},
                        {p.stride[1], p.stride[2]},
                        {p.dilation[1], p.dilation[2]},
                        conv.weights.depthwise + at * taps * lanes,
                        conv.weights.depthwise_bias + at * lanes,
                        conv.separable ? conv.options.inner_activation : conv.options.activation,
                        out + at * vector_stride,
                        p.output[2] * pixel_stride,
                        pixel_stride,
                        channels,
                        row_sums == nullptr ? nullptr : row_sums + first * padded() + at * lanes,
                        padded()});
    }
  }

  // Pixels [first, first + pixels) of the output from a panel of depthwise outputs.
  void project(const float* panel, int64_t block_stride, int64_t first, int64_t pixels) const {
    const PackedWeights& weights = conv.weights;
    const auto* addend = static_cast<const float*>(conv.options.addend);
    const int64_t at = first * p.out_channels;
    // As the separable kernel takes these weights.
    const bool pieces = table.operands.prepared(ElementType::kFloat32);
    const Operands plain = pieces ? Operands::kPieces : Operands::kFloats;
    const Operands operands = conv.options.pairs ? Operands::kPairs : plain;
    // Pairs have taken the panel's place already.
    const bool prepares = operands == Operands::kPieces;
    table.pointwise_tile(
        {prepares ? panel_operand(table, operands, panel, p.inner_channels, pixels, block_stride) : panel,
         block_stride,
         p.inner_channels,
         pixels,
         p.out_channels,
         weights.pointwise,
         weights.pointwise_bias,
         conv.options.activation,
         conv.options.residual == Residual::kInput ? addend + at : nullptr,
         conv.out + at,
         0,
         ceil_div(p.out_channels, table.tile_columns),
         {},
         operands});
  }
};

// One thread's way through consecutive output rows, band by band: what lies between the convolutions stays in its
// cache.
class Bands {
 public:
  explicit Bands(const Expansion& e) : e_(e) {
    const ConvProblem& p = e.p;
    const int64_t in_row = e.panel_floats(1) + e.vectors * e.shape.pitch;
    const int64_t out_row = (e.conv.separable ? p.output[2] * e.padded() : 0) + p.stride[1] * in_row;
    const int64_t budget = l2_cache_bytes() / kFloatBytes * 5 / 8 - e.reach * in_row;
    band_ = std::clamp<int64_t>(budget / out_row, 1, p.output[1]);
    const int64_t rows = std::min(p.input[1], (band_ - 1) * p.stride[1] + e.reach + 1);
    // What is only copied is copied again.
    seam_rows_ = e.widens ? std::min(p.input[1], e.reach) : 0;
    seam_floats_ = seam_rows_ * e.shape.pitch;
    panel_ = scratch(Scratch::kPanel, static_cast<std::size_t>(e.panel_floats(rows) + out_floats()));
    made_ = panel_ + e.panel_floats(rows);
    planes_ = scratch(Scratch::kPlanes,
                      static_cast<std::size_t>(e.planes_floats(rows) + e.widen.blocks * e.vectors * seam_floats_));
    seams_ = planes_ + e.planes_floats(rows);
  }

  // Output rows [begin, end) of an image.
  void run(int64_t image, int64_t begin, int64_t end) {
    const int64_t bands = ceil_div(end - begin, band_);
    Range before = {0, 0};
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t row = begin + (end - begin) * band / bands, stop = begin + (end - begin) * (band + 1) / bands;
      const int64_t next = band + 1 < bands ? e_.rows_under(stop, stop + 1).begin : e_.p.input[1];
      run_band(image, row, stop, before, next);
      before = e_.rows_under(row, stop);
    }
  }

 private:
  const Expansion& e_;
  int64_t band_, seam_rows_, seam_floats_;
  float *panel_, *made_, *planes_, *seams_;

  int64_t out_floats() const { return e_.conv.separable ? band_ * e_.p.output[2] * e_.padded() : 0; }

  // How many of the rows up to `end` the next band, which reads rows from `begin` on, finds in the seams.
  int64_t shared_rows(int64_t end, int64_t begin) const {
    const int64_t rows = std::max<int64_t>(0, end - begin);
    return rows <= seam_rows_ ? rows : 0;
  }

  // `before`: the input rows of the band before, of which the last may lie in the seams; `next`: the first of those
  // that the next band reads.
  void run_band(int64_t image, int64_t begin, int64_t end, Range before, int64_t next) {
    const ConvProblem& p = e_.p;
    const int64_t pixels = (end - begin) * p.output[2], pitch = e_.shape.pitch;
    const Range have = e_.rows_under(begin, end);
    const int64_t kept = shared_rows(before.end, have.begin), keep = shared_rows(have.end, next);
    e_.fill_panel(image, have, panel_);
    for (int64_t vector = 0; vector < e_.vectors; ++vector) {
      e_.shape.clear_sides(planes_ + vector * have.size() * pitch, have.size());
    }
    for (int64_t block = 0; block < e_.widen.blocks; ++block) {
      for (int64_t vector = 0; vector < e_.vectors; ++vector) {
        const float* seam = seams_ + (block * e_.vectors + vector) * seam_floats_;
        std::copy_n(seam, kept * pitch, planes_ + vector * have.size() * pitch);
      }
      e_.fill_planes(image, panel_, have, kept, block, planes_);
      e_.convolve(image, planes_, have, begin, end, block, made_);
      for (int64_t vector = 0; vector < e_.vectors; ++vector) {
        const float* from = planes_ + ((vector + 1) * have.size() - keep) * pitch;
        std::copy_n(from, keep * pitch, seams_ + (block * e_.vectors + vector) * seam_floats_);
      }
    }
    if (e_.conv.separable) {
      if (e_.conv.options.pairs) pair_panel_in_place(e_.table, e_.padded(), pixels, made_);
      e_.project(made_, pixels * e_.table.lanes, (image * p.output[1] + begin) * p.output[2], pixels);
    }
  }
};

void by_rows(const Expansion& e) {
  const int64_t height = e.p.output[1], rows = e.p.batch * height, threads = thread_count();
  // Where there are images enough, each is a part.
  const int64_t parts = e.p.batch >= 2 * threads ? e.p.batch : threads;
  parallel_runs(parts, [&](int64_t begin, int64_t end) {
    Bands bands(e);
    const int64_t last = rows * end / parts;
    for (int64_t row = rows * begin / parts; row < last;) {
      const int64_t image = row / height, first = row % height, count = std::min(height - first, last - row);
      bands.run(image, first, first + count);
      row += count;
    }
  });
}

// Image after image, whose wide channels the threads share: no row is widened twice.
void by_channels(const Expansion& e) {
  const ConvProblem& p = e.p;
  const int64_t lanes = e.table.lanes, pixels = p.output[1] * p.output[2], threads = thread_count();
  const Range rows = e.rows_under(0, p.output[1]);
  const Workspace made(static_cast<std::size_t>(e.conv.separable ? pixels * e.padded() : 0));
  for (int64_t image = 0; image < p.batch; ++image) {
    parallel_for(e.widen.blocks, 1, [&](int64_t begin, int64_t end) {
      float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(e.panel_floats(rows.size())));
      float* planes = scratch(Scratch::kPlanes, static_cast<std::size_t>(e.planes_floats(rows.size())));
      e.fill_panel(image, rows, panel);
      e.shape.clear_sides(planes, e.vectors * rows.size());
      for (int64_t block = begin; block < end; ++block) {
        e.fill_planes(image, panel, rows, 0, block, planes);
        e.convolve(image, planes, rows, 0, p.output[1], block, made.data());
      }
    });
    if (!e.conv.separable) continue;
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      const int64_t from = pixels * begin / threads, count = pixels * end / threads - from;
      if (count == 0) return;
      const float* panel = made.data() + from * lanes;
      if (!e.conv.options.pairs) return e.project(panel, pixels * lanes, image * pixels + from, count);
      float* pairs = scratch(Scratch::kPanel, static_cast<std::size_t>(ceil_div(e.lane_blocks(), 2) * count * lanes));
      e.table.pairs.panel(panel, pixels * lanes, e.lane_blocks(), count, pairs);
      e.project(pairs, count * lanes, image * pixels + from, count);
    });
  }
}

void apart(ExpandedConv conv) {
  const ConvProblem& p = conv.problem;
  const int64_t pixels = p.batch * p.input[1] * p.input[2];
  const Workspace wide(static_cast<std::size_t>(pixels * p.channels));
  pointwise_conv_forward({pixels, conv.channels, p.channels, conv.x, conv.expansion, conv.expansion_activation, nullptr,
                          wide.data(), nullptr, 0, conv.pairs, conv.x_stride});
  if (!conv.separable &&
      (conv.out_stride != p.channels || (conv.means != nullptr && conv.means_stride != p.channels))) {
    conv.expansion = nullptr;
    conv.x = wide.data();
    conv.channels = conv.x_stride = p.channels;
    return expanded_conv_forward(conv);
  }
  if (conv.separable) {
    separable_conv_forward(p, conv.weights, conv.options, wide.data(), conv.out);
  } else {
    depthwise_conv_forward(p, conv.weights, conv.options.activation, wide.data(), conv.out);
  }
  if (conv.means != nullptr) {
    const int64_t image = p.output[1] * p.output[2];
    stage_image_sums({conv.out, nullptr, nullptr, Activation::kNone, p.batch, image, p.channels}, nullptr,
                     1.0 / static_cast<double>(image), conv.means);
  }
}

// Whether threads waste less by sharing an image's channels than by sharing its rows: a block of channels too many for
// some against a row too many for some and rows that two of them widen.
bool channels_waste_less(const ConvProblem& p, bool widens) {
  const KernelTable& table = kernels();
  const int64_t threads = thread_count(), vectors = table.tile_columns / table.lanes;
  const int64_t planes = vectors * p.input[1] * PlaneShape(p, table.lanes).pitch;
  if (p.batch >= threads || planes * kFloatBytes > l2_cache_bytes() / 4) return false;
  const int64_t blocks = ceil_div(p.channels, table.tile_columns), rows = p.batch * p.output[1];
  const int64_t reach = (p.kernel[1] - 1) * p.dilation[1];
  const int64_t seam = widens ? std::max<int64_t>(0, reach + 1 - p.stride[1]) * (threads - p.batch) : 0;
  const int64_t idle_blocks = ceil_div(blocks, threads) * threads - blocks;
  const int64_t idle_rows = ceil_div(rows, threads) * threads - rows;
  // idle_blocks / blocks <= idle_rows / rows + seam / input rows
  const int64_t inputs = p.batch * p.input[1];
  return idle_blocks * rows * inputs <= (idle_rows * inputs + seam * rows) * blocks && idle_rows + seam > 0;
}

// The means over the pixels of each image, from the sums over its rows: the same whoever computed which row.
void write_means(const Expansion& e) {
  const ConvProblem& p = e.p;
  const double factor = 1.0 / static_cast<double>(p.output[1] * p.output[2]);
  parallel_for(p.batch * e.lane_blocks(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / e.lane_blocks(), first = unit % e.lane_blocks() * e.table.lanes;
      const float* sums = e.row_sums + image * p.output[1] * e.padded() + first;
      double totals[kMostLanes] = {};
      for (int64_t row = 0; row < p.output[1]; ++row, sums += e.padded()) {
        for (int64_t lane = 0; lane < e.table.lanes; ++lane) totals[lane] += static_cast<double>(sums[lane]);
      }
      float* out = e.conv.means + image * e.conv.means_stride + first;
      const int64_t count = std::min(e.table.lanes, p.channels - first);
      for (int64_t lane = 0; lane < count; ++lane) out[lane] = static_cast<float>(factor * totals[lane]);
    }
  });
}

}  // namespace

bool planes_balance(const ConvProblem& problem) { return channels_waste_less(problem, false); }

void expanded_conv_forward(ExpandedConv conv) {
  if (conv.x_stride == 0) conv.x_stride = conv.channels;
  if (conv.out_stride == 0) conv.out_stride = conv.problem.channels;
  if (conv.means_stride == 0) conv.means_stride = conv.problem.channels;
  Expansion expansion(conv);
  const ConvProblem& p = conv.problem;
  const int64_t threads = thread_count();
  const bool channels = channels_waste_less(p, expansion.widens);
  if (!channels && expansion.widens && threads > 1 && p.batch * p.output[1] < threads * kLeastRows) return apart(conv);
  const int64_t sums = conv.means == nullptr ? 0 : p.batch * p.output[1] * expansion.padded();
  const Workspace row_sums(static_cast<std::size_t>(sums));
  if (sums > 0) expansion.row_sums = row_sums.data();
  if (channels) {
    by_channels(expansion);
  } else {
    by_rows(expansion);
  }
  if (sums > 0) write_means(expansion);
}

}  // namespace dwsep
