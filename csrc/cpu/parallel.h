// ATen's thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace dwsep {

// f(begin, end) over [0, count) in parts of at least `grain`.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

}  // namespace dwsep
