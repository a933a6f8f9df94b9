#include "cpu/expanded_conv_kernel.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/depthwise_conv_kernel.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_conv_kernel.h"
#include "cpu/scratch.h"
#include "cpu/separable_conv_kernel.h"
#include "cpu/tiling.h"
#include "cpu/workspace.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
// Rows at the seams are widened twice: a thread needs so many of its own for that to pay.
constexpr int64_t kLeastRows = 6;

// One thread's way through consecutive output rows, band by band.
class Bands {
 public:
  Bands(const ExpandedConv& conv, const ConvProblem& problem)
      : conv_(conv),
        p_(problem),
        table_(kernels()),
        row_floats_(problem.input[2] * problem.channels),
        expansion_(table_, conv.channels, problem.channels, conv.expansion),
        tile_(expansion_.pixels_in_l1(table_)) {
    const int64_t fit = l2_cache_bytes() / 2 / (row_floats_ * kFloatBytes), reach = (p_.kernel[1] - 1) * p_.dilation[1];
    band_ = std::clamp<int64_t>((fit - reach - 1) / p_.stride[1] + 1, 1, p_.output[1]);
    rows_ = std::min(p_.input[1], (band_ - 1) * p_.stride[1] + reach + 1);
    const int64_t padded = ceil_div(p_.inner_channels, table_.lanes) * table_.lanes;
    const int64_t budget = l1_cache_bytes() / 2 / (padded * kFloatBytes);
    pixels_ = conv.separable ? std::max(budget, 2 * table_.tile_pixels)
                             : std::max<int64_t>(1, l1_cache_bytes() / (padded * kFloatBytes));
    const int64_t panel = conv.separable ? table_.separable_floats(p_, pixels_) : 0;
    panel_ = scratch(Scratch::kPanel, static_cast<std::size_t>(std::max(tile_ * expansion_.inner, panel)));
    wide_ = scratch(Scratch::kPlanes, static_cast<std::size_t>(rows_ * row_floats_));
  }

  void run(int64_t image, int64_t begin, int64_t end) {
    Range have = {0, 0};
    for (int64_t row = begin; row < end; row += band_) {
      const int64_t stop = std::min(end, row + band_);
      const int64_t first = row * p_.stride[1] - p_.pad_low[1];
      const int64_t last = (stop - 1) * p_.stride[1] - p_.pad_low[1] + (p_.kernel[1] - 1) * p_.dilation[1];
      // Where all taps lie in the padding there is nothing to widen; one row stands for it.
      const int64_t low = std::clamp<int64_t>(first, 0, p_.input[1] - 1);
      const int64_t high = std::clamp<int64_t>(last + 1, low + 1, p_.input[1]);
      const int64_t kept = std::clamp<int64_t>(have.end - low, 0, high - low);
      if (kept > 0 && low > have.begin) {
        std::copy_n(wide_ + (low - have.begin) * row_floats_, kept * row_floats_, wide_);
      }
      widen(image, low + kept, high, wide_ + kept * row_floats_);
      have = {low, high};
      convolve(image, row, stop, low, high);
    }
  }

 private:
  // Input rows [begin, end) of an image.
  void widen(int64_t image, int64_t begin, int64_t end, float* target) {
    const int64_t count = std::max<int64_t>(0, end - begin) * p_.input[2];
    const float* x = conv_.x + (image * p_.input[1] + begin) * p_.input[2] * conv_.channels;
    const int64_t tiles = ceil_div(count, tile_);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = count * tile / tiles, pixels = count * (tile + 1) / tiles - first;
      table_.stage_row({x + first * conv_.channels, nullptr, nullptr, nullptr, Activation::kNone, conv_.channels,
                        pixels, conv_.channels, panel_, pixels * table_.lanes});
      table_.pointwise_tile({panel_,
                             conv_.channels,
                             pixels,
                             p_.channels,
                             expansion_.weights,
                             expansion_.bias,
                             conv_.expansion_activation,
                             nullptr,
                             target + first * p_.channels,
                             0,
                             expansion_.blocks,
                             {}});
    }
  }

  // Output rows [begin, end) from the input rows [low, high), which lie in `wide_` as an image of their own.
  void convolve(int64_t image, int64_t begin, int64_t end, int64_t low, int64_t high) {
    ConvProblem band = p_;
    band.batch = 1;
    band.input[1] = high - low;
    band.output[1] = end - begin;
    band.pad_low[1] = low - (begin * p_.stride[1] - p_.pad_low[1]);
    const int64_t channels = conv_.separable ? p_.out_channels : p_.inner_channels;
    const int64_t at = (image * p_.output[1] + begin) * p_.output[2] * channels;
    SeparableOptions options = conv_.options;
    if (options.addend != nullptr) options.addend = static_cast<const float*>(options.addend) + at;
    const Tiling tiling(band, pixels_, ceil_div(p_.out_channels, table_.tile_columns), 1);
    for (int64_t i = 0; i < tiling.count(); ++i) {
      if (conv_.separable) {
        table_.separable_tile(band, conv_.weights, options, wide_, conv_.out + at, tiling[i], panel_);
      } else {
        table_.depthwise_tile(band, conv_.weights, options.activation, wide_, conv_.out + at, tiling[i]);
      }
    }
  }

  const ExpandedConv& conv_;
  const ConvProblem& p_;
  const KernelTable& table_;
  int64_t row_floats_;
  PackedPointwise expansion_;
  int64_t tile_, band_, rows_, pixels_;
  float *panel_, *wide_;
};

void apart(const ExpandedConv& conv) {
  const ConvProblem& p = conv.problem;
  const int64_t pixels = p.batch * p.input[1] * p.input[2];
  const Workspace wide(static_cast<std::size_t>(pixels * p.channels));
  pointwise_conv_forward(
      {pixels, conv.channels, p.channels, conv.x, conv.expansion, conv.expansion_activation, nullptr, wide.data()});
  if (conv.separable) {
    separable_conv_forward(p, conv.weights, conv.options, wide.data(), conv.out);
  } else {
    depthwise_conv_forward(p, conv.weights, conv.options.activation, wide.data(), conv.out);
  }
}

}  // namespace

void expanded_conv_forward(const ExpandedConv& conv) {
  const int64_t rows = conv.problem.batch * conv.problem.output[1], threads = thread_count();
  if (threads > 1 && rows < threads * kLeastRows) return apart(conv);
  ConvProblem problem = conv.problem;
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    Bands bands(conv, problem);
    const int64_t last = rows * end / threads;
    for (int64_t row = rows * begin / threads; row < last;) {
      const int64_t image = row / problem.output[1], first = row % problem.output[1];
      const int64_t count = std::min(problem.output[1] - first, last - row);
      bands.run(image, first, first + count);
      row += count;
    }
  });
}

}  // namespace dwsep
