// What a stage of training leaves pending, norm, activation and residual, as a tensor; and the norm of a plain tensor.
#pragma once

#include "cpu/stage_jobs.h"

namespace dwsep {

// All of a job's pixels, on the threads.
void stage_output_forward(const StageOutput& output);

// Sums and sums of squares of x (pixels, channels), per channel.
void stage_sums(const float* x, int64_t pixels, int64_t channels, double* sums);

// out = gradient + correction[0] * y + correction[1], all (pixels, channels).
void stage_corrected(const float* gradient, const float* y, const float* correction, int64_t pixels, int64_t channels,
                     float* out);

}  // namespace dwsep
