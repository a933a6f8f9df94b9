// Several outputs per input channel in channels last, side by side: the kernels read and write vectors of neighbouring
// channels, and take a copy in which every channel comes as many times.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/conv_problem.h"
#include "cpu/workspace.h"

namespace dwsep {

int64_t input_elements(const ConvProblem& problem);

// The input of a problem with every channel as many times as it has outputs; itself where that is once.
class RepeatedChannels {
 public:
  RepeatedChannels(const ConvProblem& problem, const void* x);
  const void* data() const { return data_; }

 private:
  std::optional<Workspace> memory_;
  const void* data_;
};

// target[i] = the sum over j of source[i * count + j], in the order of j.
void sum_repeated_elements(const float* source, int64_t size, int64_t count, float* target);

// The problem of the copy: every output channel has an input channel of its own.
ConvProblem of_repeated_channels(ConvProblem problem);

}  // namespace dwsep
