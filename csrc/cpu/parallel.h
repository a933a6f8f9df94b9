// ATen's thread pool; a plain loop in builds without torch, which test kernels on emulated CPUs.
#pragma once

#ifndef DWSEP_WITHOUT_TORCH
#include <torch/csrc/stable/ops.h>
#endif

#include <cstdint>

namespace dwsep {

// f(begin, end) over [0, count) in parts of at least `grain`.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
#ifdef DWSEP_WITHOUT_TORCH
  f(int64_t{0}, count);
#else
  torch::stable::parallel_for(0, count, grain, f);
#endif
}

inline int64_t thread_count() {
#ifdef DWSEP_WITHOUT_TORCH
  return 2;
#else
  return static_cast<int64_t>(torch::stable::get_num_threads());
#endif
}

}  // namespace dwsep
