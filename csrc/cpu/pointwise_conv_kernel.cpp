#include "cpu/pointwise_conv_kernel.h"

#include <algorithm>
#include <vector>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/packing.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

int64_t padded_inner(const KernelTable& table, int64_t channels) {
  return ceil_div(channels, table.lanes) * table.lanes;
}

// Pixels [first, first + pixels) as a panel, times their images' gates.
void fill_panel(const KernelTable& table, const PointwiseConv& conv, const float* zeros, int64_t first, int64_t pixels,
                float* panel) {
  for (int64_t done = 0; done < pixels;) {
    const int64_t pixel = first + done;
    const int64_t image = conv.gate == nullptr ? 0 : pixel / conv.image_pixels;
    const int64_t count =
        conv.gate == nullptr ? pixels : std::min(pixels - done, (image + 1) * conv.image_pixels - pixel);
    const float* gate = conv.gate == nullptr ? nullptr : conv.gate + image * conv.gate_stride;
    table.stage_row({conv.x + pixel * conv.x_stride, nullptr, gate, zeros, Activation::kNone, conv.x_stride, count,
                     conv.channels, panel + done * table.lanes, pixels * table.lanes});
    done += count;
  }
}

}  // namespace

PackedPointwise::PackedPointwise(const KernelTable& table, int64_t channels, int64_t out_channels, const float* packed)
    : inner(padded_inner(table, channels)),
      blocks(ceil_div(out_channels, table.tile_columns)),
      weights(packed),
      bias(packed == nullptr ? nullptr : packed + blocks * inner * table.tile_columns) {}

int64_t PackedPointwise::pixels_in_l1(const KernelTable& table) const {
  return std::max(l1_cache_bytes() / 2 / (inner * kFloatBytes), 2 * table.tile_pixels);
}

int64_t PackedPointwise::pixels_in_l2(const KernelTable& table) const {
  return std::max(l2_cache_bytes() / 4 / (inner * kFloatBytes), 2 * table.tile_pixels);
}

int64_t packed_pointwise_size(const KernelTable& table, int64_t channels, int64_t out_channels) {
  return ceil_div(out_channels, table.tile_columns) * table.tile_columns * (padded_inner(table, channels) + 1);
}

void pack_pointwise(const KernelTable& table, const float* weight, const float* bias, int64_t channels,
                    int64_t out_channels, bool pairs, float* packed) {
  pack_pointwise_blocks(table, weight, channels, out_channels, packed);
  if (pairs) pair_pointwise_blocks(table, channels, out_channels, packed);
  const int64_t columns = ceil_div(out_channels, table.tile_columns) * table.tile_columns;
  float* packed_bias = packed + columns * padded_inner(table, channels);
  std::fill_n(packed_bias, columns, 0.0f);
  if (bias != nullptr) std::copy_n(bias, out_channels, packed_bias);
}

void pointwise_conv_forward(PointwiseConv conv) {
  if (conv.x_stride == 0) conv.x_stride = conv.channels;
  if (conv.out_stride == 0) conv.out_stride = conv.out_channels;
  if (conv.gate_stride == 0) conv.gate_stride = conv.channels;
  const KernelTable& table = kernels();
  const PackedPointwise packed(table, conv.channels, conv.out_channels, conv.packed);
  const int64_t blocks = packed.blocks, threads = thread_count();
  // A panel in L1 while the weights stream from L2; a larger one in L2 where they outgrow it. An output's value depends
  // on no other's, so that the cut may follow the threads.
  const bool large = (packed.bias - packed.weights) * kFloatBytes > l2_cache_bytes() / 2;
  const int64_t least = 2 * table.tile_pixels;
  const int64_t fair = std::max(least, ceil_div(conv.pixels, 2 * threads));
  const int64_t tile = std::min(large ? packed.pixels_in_l2(table) : packed.pixels_in_l1(table), fair);
  const int64_t tiles = ceil_div(conv.pixels, tile);
  // Few tiles: the output's channels are split, too.
  const int64_t splits = tiles >= 2 * threads || threads == 1 ? 1 : std::min(blocks, ceil_div(2 * threads, tiles));
  const std::vector<float> zeros(conv.gate == nullptr ? 0 : static_cast<std::size_t>(conv.channels));
  parallel_runs(tiles * splits, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * packed.inner));
    int64_t filled = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t index = unit / splits, split = unit % splits;
      const int64_t first = conv.pixels * index / tiles, pixels = conv.pixels * (index + 1) / tiles - first;
      if (filled != index) {
        fill_panel(table, conv, zeros.data(), first, pixels, panel);
        if (conv.pairs) pair_panel_in_place(table, packed.inner, pixels, panel);
        filled = index;
      }
      const int64_t next = first + pixels;
      // What lies between the pixels of a part is not asked for with them.
      const bool asks = unit + splits < end && conv.x_stride == conv.channels;
      const int64_t next_pixels = asks ? conv.pixels * (index + 2) / tiles - next : 0;
      table.pointwise_tile({panel,
                            0,
                            conv.channels,
                            pixels,
                            conv.out_channels,
                            packed.weights,
                            packed.bias,
                            conv.activation,
                            conv.residual != nullptr ? conv.residual + first * conv.out_stride : nullptr,
                            conv.out + first * conv.out_stride,
                            blocks * split / splits,
                            blocks * (split + 1) / splits,
                            {{{conv.x + next * conv.x_stride, next_pixels * conv.channels * kFloatBytes}}},
                            conv.pairs ? Operands::kPairs : Operands::kFloats,
                            conv.out_stride});
    }
  });
}

}  // namespace dwsep
