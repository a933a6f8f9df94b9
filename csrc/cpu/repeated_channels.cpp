#include "cpu/repeated_channels.h"

#include "cpu/elements.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"

namespace dwsep {
namespace {

constexpr int64_t kGrain = 1 << 15;

// kCount is 0 where the count is known at run time only.
template <int64_t kCount, class T>
void repeat(const T* source, int64_t begin, int64_t end, int64_t count, T* target) {
  const int64_t each = kCount > 0 ? kCount : count;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < each; ++j) target[i * each + j] = source[i];
  }
}

template <int64_t kCount>
void sum(const float* source, int64_t begin, int64_t end, int64_t count, float* target) {
  const int64_t each = kCount > 0 ? kCount : count;
  for (int64_t i = begin; i < end; ++i) {
    float total = source[i * each];
    for (int64_t j = 1; j < each; ++j) total += source[i * each + j];
    target[i] = total;
  }
}

template <class T>
void repeat_all(const T* source, int64_t size, int64_t count, T* target) {
  const auto run = count == 2 ? repeat<2, T> : count == 3 ? repeat<3, T> : count == 4 ? repeat<4, T> : repeat<0, T>;
  parallel_for(size, kGrain, [&](int64_t begin, int64_t end) { run(source, begin, end, count, target); });
}

}  // namespace

int64_t input_elements(const ConvProblem& problem) {
  return problem.batch * problem.input[0] * problem.input[1] * problem.input[2] * problem.channels;
}

RepeatedChannels::RepeatedChannels(const ConvProblem& problem, const void* x) : data_(x) {
  const int64_t count = problem.multiplier;
  if (count == 1) return;
  const int64_t size = input_elements(problem), bytes = size * count * element_bytes(problem.element_type);
  memory_.emplace(static_cast<std::size_t>(ceil_div(bytes, sizeof(float))));
  void* target = memory_->data();
  data_ = target;
  if (problem.element_type == ElementType::kFloat32) {
    repeat_all(static_cast<const float*>(x), size, count, static_cast<float*>(target));
  } else {
    repeat_all(static_cast<const uint16_t*>(x), size, count, static_cast<uint16_t*>(target));
  }
}

void sum_repeated_elements(const float* source, int64_t size, int64_t count, float* target) {
  const auto run = count == 2 ? sum<2> : count == 3 ? sum<3> : count == 4 ? sum<4> : sum<0>;
  parallel_for(size, kGrain, [&](int64_t begin, int64_t end) { run(source, begin, end, count, target); });
}

ConvProblem of_repeated_channels(ConvProblem problem) {
  problem.channels = problem.inner_channels;
  problem.multiplier = 1;
  return problem;
}

}  // namespace dwsep
