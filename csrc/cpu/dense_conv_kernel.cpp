#include "cpu/dense_conv_kernel.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_conv_kernel.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

// The rows of the input under one output row, padded with zeros, one behind the other.
class PaddedRows {
 public:
  explicit PaddedRows(const DenseConv& conv)
      : conv_(conv),
        p_(conv.problem),
        left_(p_.pad_low[2]),
        // What no tap reaches may be missing at the right, what taps reach beyond the input is there.
        columns_((p_.output[2] - 1) * p_.stride[2] + (p_.kernel[2] - 1) * p_.dilation[2] + 1),
        row_floats_(columns_ * p_.channels) {}

  int64_t row_floats() const { return row_floats_; }
  int64_t floats(int64_t lanes) const { return p_.kernel[1] * row_floats_ + lanes; }

  void fill(int64_t image, int64_t row, float* rows) const {
    const int64_t first = std::max<int64_t>(0, -left_), begin = std::clamp<int64_t>(left_, 0, columns_);
    const int64_t count = std::clamp<int64_t>(p_.input[2] - first, 0, columns_ - begin);
    for (int64_t tap = 0; tap < p_.kernel[1]; ++tap, rows += row_floats_) {
      const int64_t y = row * p_.stride[1] - p_.pad_low[1] + tap * p_.dilation[1];
      if (y < 0 || y >= p_.input[1]) {
        std::fill_n(rows, row_floats_, 0.0f);
        continue;
      }
      const float* source = conv_.x + ((image * p_.input[1] + y) * p_.input[2] + first) * p_.channels;
      std::fill_n(rows, begin * p_.channels, 0.0f);
      std::copy_n(source, count * p_.channels, rows + begin * p_.channels);
      std::fill_n(rows + (begin + count) * p_.channels, (columns_ - begin - count) * p_.channels, 0.0f);
    }
  }

 private:
  const DenseConv& conv_;
  const ConvProblem& p_;
  int64_t left_, columns_, row_floats_;
};

}  // namespace

void dense_conv_forward(const DenseConv& conv) {
  const KernelTable& table = kernels();
  const ConvProblem& p = conv.problem;
  const PaddedRows padded(conv);
  // Taps side by side are one run of memory where nothing lies between them.
  const bool together = p.dilation[2] == 1;
  const int64_t run_length = together ? p.kernel[2] * p.channels : p.channels;
  std::vector<int64_t> runs;
  for (int64_t row = 0; row < p.kernel[1]; ++row) {
    for (int64_t tap = 0; tap < (together ? 1 : p.kernel[2]); ++tap) {
      runs.push_back(row * padded.row_floats() + tap * p.dilation[2] * p.channels);
    }
  }
  const PackedPointwise packed(table, p.inner_channels, p.out_channels, conv.packed);
  const int64_t columns = p.output[2], tile = std::min(columns, packed.pixels_in_l1(table));
  const int64_t tiles = ceil_div(columns, tile);
  parallel_for(p.batch * p.output[1], 1, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(tile * packed.inner));
    float* rows = scratch(Scratch::kPlanes, static_cast<std::size_t>(padded.floats(table.lanes)));
    for (int64_t row = begin; row < end; ++row) {
      padded.fill(row / p.output[1], row % p.output[1], rows);
      for (int64_t part = 0; part < tiles; ++part) {
        const int64_t column = columns * part / tiles, pixels = columns * (part + 1) / tiles - column;
        const int64_t step = p.stride[2] * p.channels, run_count = static_cast<int64_t>(runs.size());
        const int64_t at = (row * columns + column) * p.out_channels;
        const float *source = rows + column * step, *residual = conv.residual != nullptr ? conv.residual + at : nullptr;
        if (table.dense_row({source, runs.data(), run_count, run_length, step, pixels, p.out_channels, packed.weights,
                             packed.bias, packed.inner, conv.activation, residual, conv.out + at})) {
          continue;
        }
        table.patch_row({source, runs.data(), run_count, run_length, step, pixels, panel});
        table.pointwise_tile({panel,
                              0,
                              p.inner_channels,
                              pixels,
                              p.out_channels,
                              packed.weights,
                              packed.bias,
                              conv.activation,
                              residual,
                              conv.out + at,
                              0,
                              packed.blocks,
                              {}});
      }
    }
  });
}

}  // namespace dwsep
