#include "cpu/packing.h"

#include <algorithm>
#include <type_traits>

#include "cpu/elements.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

template <class T>
void pack_bias(float* target, const T* source, int64_t count, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) target[i] = source != nullptr && i < count ? as_float(source[i]) : 0.0f;
}

template <class T>
void pack_depthwise(float* target, const T* source, int64_t channels, int64_t taps, int64_t lanes) {
  const int64_t blocks = (channels + lanes - 1) / lanes;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t channel = block * lanes + lane;
      float* out = target + block * taps * lanes + lane;
      for (int64_t tap = 0; tap < taps; ++tap) {
        out[tap * lanes] = channel < channels ? as_float(source[channel * taps + tap]) : 0.0f;
      }
    }
  }
}

// One K block: [inner channel, padded][column]. Strips of 16 inner channels keep the columns' source lines in L1.
template <class T>
void pack_pointwise_block(float* target, const T* source, int64_t inner, int64_t padded, int64_t out_channels,
                          int64_t columns, int64_t block) {
  const int64_t first = block * columns;
  const int64_t valid = std::min(columns, out_channels - first);
  constexpr int64_t kStrip = 16;
  for (int64_t begin = 0; begin < padded; begin += kStrip) {
    const int64_t end = std::min(begin + kStrip, padded);
    const int64_t filled = std::clamp<int64_t>(inner, begin, end);
    for (int64_t column = 0; column < columns; ++column) {
      float* out = target + column;
      const T* row = source + (first + column) * inner;
      const int64_t stop = column < valid ? filled : begin;
      for (int64_t d = begin; d < stop; ++d) out[d * columns] = as_float(row[d]);
      for (int64_t d = stop; d < end; ++d) out[d * columns] = 0.0f;
    }
  }
}

// Sizes of the four parts in floats, each of whole cache lines.
struct PartSizes {
  int64_t depthwise, depthwise_bias, pointwise, pointwise_bias;
};

struct Layout {
  int64_t taps, padded, blocks, block_floats;
  PartSizes sizes;
};

int64_t taps_of(const ConvProblem& problem) { return problem.kernel[0] * problem.kernel[1] * problem.kernel[2]; }

int64_t padded_to(int64_t lanes, int64_t channels) { return ceil_div(channels, lanes) * lanes; }

Layout layout_of(const ConvProblem& problem, const KernelTable& kernels) {
  const auto whole_lines = [](int64_t count) { return (count + 15) / 16 * 16; };
  const int64_t taps = taps_of(problem);
  const int64_t padded = separates_ranks(problem, kernels) ? panel_channels(problem, kernels)
                                                           : padded_to(kernels.lanes, problem.inner_channels);
  const int64_t columns = kernels.tile_columns;
  const int64_t blocks = (problem.out_channels + columns - 1) / columns;
  const int64_t block_floats = weight_block_floats(kernels, problem.element_type, padded);
  return {taps,
          padded,
          blocks,
          block_floats,
          {whole_lines(padded * taps), whole_lines(padded), whole_lines(blocks * block_floats),
           whole_lines(blocks * columns)}};
}

template <class T>
void pack(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources, float* memory,
          bool pairs) {
  const Layout layout = layout_of(problem, kernels);
  const int64_t columns = kernels.tile_columns, inner = problem.inner_channels, padded = layout.padded;
  float* depthwise_bias = memory + layout.sizes.depthwise;
  float* pointwise = depthwise_bias + layout.sizes.depthwise_bias;
  float* pointwise_bias = pointwise + layout.sizes.pointwise;
  // The packed weights may be a tensor, whose every element has a value: what is left of the parts' last cache lines
  // too.
  const auto clear_end = [](float* part, int64_t used, int64_t size) { std::fill_n(part + used, size - used, 0.0f); };
  clear_end(memory, padded * layout.taps, layout.sizes.depthwise);
  clear_end(depthwise_bias, padded, layout.sizes.depthwise_bias);
  clear_end(pointwise, layout.blocks * layout.block_floats, layout.sizes.pointwise);
  clear_end(pointwise_bias, layout.blocks * columns, layout.sizes.pointwise_bias);
  pack_depthwise(memory, static_cast<const T*>(sources.depthwise), inner, layout.taps, kernels.lanes);
  pack_bias(depthwise_bias, static_cast<const T*>(sources.depthwise_bias), inner, padded);
  if (layout.blocks == 0) return;
  pack_bias(pointwise_bias, static_cast<const T*>(sources.pointwise_bias), problem.out_channels,
            layout.blocks * columns);
  const bool prepared = !pairs && kernels.operands.prepared(problem.element_type);
  if (std::is_same_v<T, float> && !prepared) {
    // Pieces would take more.
    clear_end(pointwise, layout.blocks * padded * columns, layout.blocks * layout.block_floats);
    pack_pointwise_blocks(kernels, static_cast<const float*>(sources.pointwise), inner, problem.out_channels,
                          pointwise);
    if (pairs) pair_pointwise_blocks(kernels, inner, problem.out_channels, pointwise);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, 32768 / (padded * columns));
  parallel_for(layout.blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* target = pointwise + block * layout.block_floats;
      float* plain = prepared ? scratch(Scratch::kPlainWeights, static_cast<std::size_t>(padded * columns)) : target;
      pack_pointwise_block(plain, static_cast<const T*>(sources.pointwise), inner, padded, problem.out_channels,
                           columns, block);
      if (prepared) kernels.operands.pack_weights(problem.element_type, plain, padded, target);
    }
  });
  if (pairs) pair_pointwise_blocks(kernels, inner, problem.out_channels, pointwise);
}

// Weights rank by rank, zeros in the lanes behind the last channel, as if of a convolution with a multiplier of 1.
template <class T>
class RankedWeights {
 public:
  RankedWeights(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources)
      : problem_(problem),
        rank_(padded_to(kernels.lanes, problem.channels)),
        depthwise_(of_depthwise(static_cast<const T*>(sources.depthwise), taps_of(problem))),
        bias_(of_depthwise(static_cast<const T*>(sources.depthwise_bias), 1)),
        pointwise_(of_pointwise(static_cast<const T*>(sources.pointwise))),
        sources_{depthwise_.data(), sources.depthwise_bias == nullptr ? nullptr : bias_.data(), pointwise_.data(),
                 sources.pointwise_bias} {
    problem_.inner_channels = problem_.channels = inner();
    problem_.multiplier = 1;
  }

  const ConvProblem& problem() const { return problem_; }
  const WeightSources& sources() const { return sources_; }

 private:
  ConvProblem problem_;
  int64_t rank_;
  std::vector<T> depthwise_, bias_, pointwise_;
  WeightSources sources_;

  int64_t inner() const { return problem_.multiplier * rank_; }

  std::vector<T> of_depthwise(const T* source, int64_t taps) const {
    std::vector<T> made(static_cast<std::size_t>(source == nullptr ? 0 : inner() * taps));
    if (source == nullptr) return made;
    for (int64_t channel = 0; channel < problem_.channels; ++channel) {
      for (int64_t m = 0; m < problem_.multiplier; ++m, source += taps) {
        std::copy_n(source, taps, made.begin() + (m * rank_ + channel) * taps);
      }
    }
    return made;
  }

  std::vector<T> of_pointwise(const T* source) const {
    const int64_t channels = problem_.channels, multiplier = problem_.multiplier;
    std::vector<T> made(static_cast<std::size_t>(problem_.out_channels * inner()));
    for (int64_t k = 0; k < problem_.out_channels; ++k, source += channels * multiplier) {
      T* target = made.data() + k * inner();
      for (int64_t m = 0; m < multiplier; ++m, target += rank_) {
        for (int64_t channel = 0; channel < channels; ++channel) target[channel] = source[channel * multiplier + m];
      }
    }
    return made;
  }
};

template <class T>
void pack_in_order(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources, float* memory,
                   bool pairs) {
  if (!separates_ranks(problem, kernels)) return pack<T>(problem, kernels, sources, memory, pairs);
  const RankedWeights<T> ranked(problem, kernels, sources);
  pack<T>(ranked.problem(), kernels, ranked.sources(), memory, pairs);
}

}  // namespace

int64_t panel_channels(const ConvProblem& problem, const KernelTable& kernels) {
  return problem.multiplier * padded_to(kernels.lanes, problem.channels);
}

bool separates_ranks(const ConvProblem& problem, const KernelTable& kernels) {
  if (problem.multiplier == 1 || problem.out_channels == 0) return false;
  const int64_t padded = padded_to(kernels.lanes, problem.inner_channels);
  return panel_channels(problem, kernels) * 8 <= padded * 9;
}

int64_t weight_block_floats(const KernelTable& kernels, ElementType type, int64_t inner) {
  if (!kernels.operands.prepared(type)) return inner * kernels.tile_columns;
  return kernels.operands.floats(type, kernels.tile_columns, inner);
}

int64_t packed_size(const ConvProblem& problem, const KernelTable& kernels) {
  const PartSizes sizes = layout_of(problem, kernels).sizes;
  return sizes.depthwise + sizes.depthwise_bias + sizes.pointwise + sizes.pointwise_bias;
}

PackedWeights packed_parts(const ConvProblem& problem, const KernelTable& kernels, const float* memory) {
  const PartSizes sizes = layout_of(problem, kernels).sizes;
  const float* depthwise_bias = memory + sizes.depthwise;
  const float* pointwise = depthwise_bias + sizes.depthwise_bias;
  return {memory, depthwise_bias, pointwise, pointwise + sizes.pointwise};
}

void pack_weights(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources, float* memory,
                  bool pairs) {
  if (problem.element_type == ElementType::kBFloat16) {
    pack_in_order<uint16_t>(problem, kernels, sources, memory,
                            takes_pairs(kernels, !kernels.operands.prepared(problem.element_type)));
  } else {
    pack_in_order<float>(problem, kernels, sources, memory, pairs);
  }
}

Operands float_operands(const KernelTable& kernels, int64_t inner, int64_t outputs, bool rounds) {
  // A panel of pairs is made in a pass over it, and a few outputs don't make up for that.
  constexpr int64_t kLeast = 16;
  if (takes_pairs(kernels, rounds) && inner >= kLeast && outputs >= kLeast) return Operands::kPairs;
  return kernels.operands.pays(inner, outputs) ? Operands::kPieces : Operands::kFloats;
}

void pack_block_operand(const KernelTable& kernels, Operands operands, const float* plain, int64_t inner,
                        float* target) {
  if (operands == Operands::kPairs) {
    kernels.pairs.columns(plain, inner, target);
  } else {
    kernels.operands.pack_weights(ElementType::kFloat32, plain, inner, target);
  }
}

int64_t weight_block_floats(const KernelTable& kernels, Operands operands, int64_t inner) {
  const int64_t padded = padded_to(kernels.lanes, inner), columns = kernels.tile_columns;
  if (operands == Operands::kFloats) return padded * columns;
  if (operands == Operands::kPairs) return padded_to(2 * kernels.lanes, inner) / 2 * columns;
  return kernels.operands.floats(ElementType::kFloat32, columns, padded);
}

int64_t panel_operand_floats(const KernelTable& kernels, Operands operands, int64_t inner, int64_t pixels) {
  if (operands == Operands::kFloats) return 0;
  if (operands == Operands::kPairs) return padded_to(2 * kernels.lanes, inner) / 2 * pixels;
  return kernels.operands.floats(ElementType::kFloat32, pixels, padded_to(kernels.lanes, inner));
}

namespace {

// fill(block, target) for every block of columns, whose floats then become its operand.
template <class F>
void pack_blocks(const KernelTable& kernels, int64_t blocks, int64_t padded, float* packed, Operands operands,
                 const F& fill) {
  const int64_t plain_floats = padded * kernels.tile_columns;
  const int64_t block_floats = weight_block_floats(kernels, operands, padded);
  parallel_for(blocks, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, plain_floats)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   float* target = packed + block * block_floats;
                   if (operands == Operands::kFloats) {
                     fill(block, target);
                     continue;
                   }
                   float* plain = scratch(Scratch::kBlock, static_cast<std::size_t>(plain_floats));
                   fill(block, plain);
                   pack_block_operand(kernels, operands, plain, padded, target);
                 }
               });
}

}  // namespace

void pack_pointwise_blocks(const KernelTable& kernels, const float* weight, int64_t inner, int64_t out_channels,
                           float* packed, Operands operands) {
  const int64_t columns = kernels.tile_columns;
  pack_blocks(kernels, ceil_div(out_channels, columns), padded_to(kernels.lanes, inner), packed, operands,
              [&](int64_t block, float* target) {
                const int64_t first = block * columns;
                kernels.pack_columns(weight + first * inner, std::min(columns, out_channels - first), inner, target);
              });
}

void pair_pointwise_blocks(const KernelTable& kernels, int64_t inner, int64_t out_channels, float* packed) {
  const int64_t columns = kernels.tile_columns, lanes = kernels.lanes;
  const int64_t padded = (inner + lanes - 1) / lanes * lanes;
  const int64_t pairs = (padded + 2 * lanes - 1) / (2 * lanes) * lanes;
  for (int64_t block = 0; block < (out_channels + columns - 1) / columns; ++block) {
    kernels.pairs.columns(packed + block * padded * columns, padded, packed + block * pairs * columns);
  }
}

void pack_pointwise_transposed(const KernelTable& kernels, const float* weight, int64_t inner, int64_t out_channels,
                               float* packed, Operands operands) {
  const int64_t columns = kernels.tile_columns, padded = padded_to(kernels.lanes, out_channels);
  pack_blocks(kernels, ceil_div(inner, columns), padded, packed, operands, [&](int64_t block, float* target) {
    const int64_t first = block * columns, valid = std::min(columns, inner - first);
    for (int64_t k = 0; k < out_channels; ++k, target += columns) {
      std::copy_n(weight + k * inner + first, valid, target);
      std::fill_n(target + valid, columns - valid, 0.0f);
    }
    std::fill_n(target, (padded - out_channels) * columns, 0.0f);
  });
}

PackedWeights pack_weights(const ConvProblem& problem, const KernelTable& kernels, const WeightSources& sources) {
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(packed_size(problem, kernels)));
  pack_weights(problem, kernels, sources, memory);
  return packed_parts(problem, kernels, memory);
}

std::vector<ColumnSegment> column_segments(const ConvProblem& problem) {
  const int64_t kernel = problem.kernel[2], dilation = problem.dilation[2], size = problem.input[2];
  std::vector<ColumnSegment> segments;
  for (int64_t column = 0; column < problem.output[2]; ++column) {
    const int64_t first = column * problem.stride[2] - problem.pad_low[2];
    const int64_t begin = std::min(kernel, first >= 0 ? 0 : (-first + dilation - 1) / dilation);
    const int64_t room = size - 1 - first;
    const int64_t end = std::max(begin, room < 0 ? 0 : std::min(kernel, room / dilation + 1));
    const bool same = !segments.empty() && segments.back().tap_begin == begin && segments.back().tap_end == end;
    if (same) {
      segments.back().end = column + 1;
    } else {
      segments.push_back({column, column + 1, begin, end});
    }
  }
  return segments;
}

}  // namespace dwsep
