#include "cpu/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace dwsep {
namespace {

constexpr double kShortestAttempt = 0.02;  // seconds; enough for waking the threads to vanish beside it
constexpr int64_t kLargestVector = 16;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Attempt {
  double seconds;
  double operations;
};

Attempt run(int64_t iterations) {
  const KernelTable& table = kernels();
  std::atomic<int64_t> operations{0};
  const double started = now();
  parallel_for(thread_count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float sink[kLargestVector] = {0.5f, 1.0f};
      operations += table.fma_loop(iterations, sink);
    }
  });
  return {now() - started, static_cast<double>(operations)};
}

}  // namespace

double fma_peak(double seconds) {
  const double started = now();
  double best = 0;
  for (int64_t iterations = 1 << 16; best == 0 || now() - started < seconds;) {
    const Attempt attempt = run(iterations);
    if (attempt.seconds < kShortestAttempt) {
      iterations *= 2;
    } else {
      best = std::max(best, attempt.operations / attempt.seconds);
    }
  }
  return best;
}

}  // namespace dwsep
