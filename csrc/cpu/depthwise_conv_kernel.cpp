#include "cpu/depthwise_conv_kernel.h"

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/tiling.h"

namespace dwsep {

void depthwise_conv_forward(ConvProblem problem, const WeightSources& weights, Activation activation, const void* x,
                            void* out) {
  const KernelTable& table = kernels();
  const std::vector<ColumnSegment> segments = column_segments(problem);
  problem.segments = segments.data();
  problem.segment_count = static_cast<int64_t>(segments.size());
  const PackedWeights packed = pack_weights(problem, table, weights);
  const int64_t bytes_of_pixel = problem.inner_channels * static_cast<int64_t>(sizeof(float));
  const Tiling tiling(problem, l1_cache_bytes() / bytes_of_pixel, 1, 1);
  parallel_for(tiling.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) table.depthwise_tile(problem, packed, activation, x, out, tiling[i]);
  });
}

}  // namespace dwsep
