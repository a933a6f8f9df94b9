#include "cpu/parallel.h"

#ifndef DWSEP_WITHOUT_TORCH
#include <torch/csrc/stable/ops.h>
#endif

namespace dwsep {

#ifdef DWSEP_WITHOUT_TORCH

void run_in_parallel(int64_t count, int64_t, void (*task)(const void*, int64_t, int64_t), const void* context) {
  task(context, 0, count);
}

int64_t thread_count() { return 2; }

#else

void run_in_parallel(int64_t count, int64_t grain, void (*task)(const void*, int64_t, int64_t), const void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { task(context, begin, end); });
}

int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

#endif

}  // namespace dwsep
