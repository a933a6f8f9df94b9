// ATen's thread pool; a plain loop in builds without torch, which test kernels on emulated CPUs. torch's headers, which
// take longer to read than a kernel takes to compile, are seen by parallel.cpp only.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace dwsep {

// task(context, begin, end) over [0, count) in parts of at least `grain`, by the threads of the pool.
void run_in_parallel(int64_t count, int64_t grain, void (*task)(const void* context, int64_t begin, int64_t end),
                     const void* context);

int64_t thread_count();

// f(begin, end) over [0, count) in parts of at least `grain`.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  const auto task = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const F*>(context))(begin, end);
  };
  run_in_parallel(count, grain, task, &f);
}

// Parts which threads may take from each other.
constexpr int64_t kMostTakenParts = 128;

// f(i) for each of [0, count), no more than may be taken, in any order: a thread goes through its share in order, then
// takes from the ends of what the others have not begun.
template <class F>
void take_parts(int64_t count, int64_t threads, const F& f) {
  std::array<std::atomic<bool>, kMostTakenParts> taken;
  for (int64_t i = 0; i < count; ++i) taken[static_cast<std::size_t>(i)].store(false, std::memory_order_relaxed);
  const auto run = [&](int64_t i) {
    if (!taken[static_cast<std::size_t>(i)].exchange(true, std::memory_order_relaxed)) f(i);
  };
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = count * begin / threads; i < count * end / threads; ++i) run(i);
    for (int64_t other = end; other < begin + threads; ++other) {
      const int64_t share = other % threads;
      for (int64_t i = count * (share + 1) / threads; i-- > count * share / threads;) run(i);
    }
  });
}

// f(begin, end) for parts of [0, count), one at a time or a few of very many. Threads are interrupted, and cores are
// not all alike: with shares that are fixed, all wait for the slowest. Results must not depend on which thread computes
// what.
template <class F>
void parallel_parts(int64_t count, const F& f) {
  const int64_t threads = std::min(thread_count(), count);
  if (threads <= 1 || threads == count || threads > kMostTakenParts) return parallel_for(count, 1, f);
  const int64_t parts = std::min(count, kMostTakenParts);
  take_parts(parts, threads, [&](int64_t i) { f(count * i / parts, count * (i + 1) / parts); });
}

// f(begin, end) over [0, count) in a few consecutive parts a thread, handed out as parallel_parts does; one a
// thread where there are too many threads for more. Results must not depend on which thread computes what, nor on the
// parts.
template <class F>
void parallel_runs(int64_t count, const F& f) {
  constexpr int64_t kPerThread = 16;
  const int64_t threads = thread_count(), each = std::min(kPerThread, kMostTakenParts / threads);
  if (each < 2) return parallel_for(count, 1, f);
  const int64_t parts = std::min(count, each * threads);
  parallel_parts(parts, [&](int64_t begin, int64_t end) { f(count * begin / parts, count * end / parts); });
}

}  // namespace dwsep
