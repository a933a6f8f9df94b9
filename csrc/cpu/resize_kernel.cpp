#include "cpu/resize_kernel.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

// What the positions of one axis are sums of: of every output the inputs, or the other way round.
struct Taps {
  std::vector<int64_t> begins, places;
  std::vector<float> weights;

  WeightedRows rows(const float* source, int64_t length, float* out) const {
    return {source, begins.data(), places.data(), weights.data(), static_cast<int64_t>(begins.size()) - 1, length, out};
  }
};

// The inputs that an output lies between, as PyTorch has them, in float32.
struct Between {
  int64_t low, high;
  float weight;  // of the high one
};

Between between(const Resize& resize, int axis, int64_t position) {
  const int64_t input = resize.input[axis], output = resize.output[axis];
  if (input == output) return {position, position, 0.0f};
  float source = 0.0f;
  if (resize.align_corners) {
    if (output > 1)
      source = static_cast<float>(input - 1) / static_cast<float>(output - 1) * static_cast<float>(position);
  } else {
    const double given = resize.scale[axis];
    const float scale =
        given > 0 ? static_cast<float>(1.0 / given) : static_cast<float>(input) / static_cast<float>(output);
    source = std::max(0.0f, scale * (static_cast<float>(position) + 0.5f) - 0.5f);
  }
  const int64_t low = std::min(static_cast<int64_t>(source), input - 1);
  return {low, std::min(low + 1, input - 1), std::clamp(source - static_cast<float>(low), 0.0f, 1.0f)};
}

// Of every output along an axis, its inputs, `stride` floats apart.
Taps forward_taps(const Resize& resize, int axis, int64_t stride) {
  Taps taps;
  taps.begins.push_back(0);
  for (int64_t position = 0; position < resize.output[axis]; ++position) {
    const Between at = between(resize, axis, position);
    taps.places.push_back(at.low * stride);
    if (at.high == at.low) {
      taps.weights.push_back(1.0f);
    } else {
      taps.places.push_back(at.high * stride);
      taps.weights.insert(taps.weights.end(), {1.0f - at.weight, at.weight});
    }
    taps.begins.push_back(static_cast<int64_t>(taps.places.size()));
  }
  return taps;
}

// Of every input along an axis, the outputs that it is part of, `stride` floats apart.
Taps backward_taps(const Resize& resize, int axis, int64_t stride) {
  std::vector<std::vector<std::pair<int64_t, float>>> found(static_cast<std::size_t>(resize.input[axis]));
  for (int64_t position = 0; position < resize.output[axis]; ++position) {
    const Between at = between(resize, axis, position);
    const bool one = at.high == at.low;
    found[static_cast<std::size_t>(at.low)].emplace_back(position * stride, one ? 1.0f : 1.0f - at.weight);
    if (!one) found[static_cast<std::size_t>(at.high)].emplace_back(position * stride, at.weight);
  }
  Taps taps;
  taps.begins.push_back(0);
  for (const auto& outputs : found) {
    for (const auto& [place, weight] : outputs) {
      taps.places.push_back(place);
      taps.weights.push_back(weight);
    }
    taps.begins.push_back(static_cast<int64_t>(taps.places.size()));
  }
  return taps;
}

}  // namespace

// Along the width first, every input row once for the output rows that it is part of; then along the height, over whole
// rows, however few the channels are.
void resize_forward(const Resize& resize, const float* x, float* y) {
  const KernelTable& table = kernels();
  const int64_t input_row = resize.input[1] * resize.channels, output_row = resize.output[1] * resize.channels;
  const int64_t height = resize.output[0];
  const Taps widths = forward_taps(resize, 1, resize.channels), heights = forward_taps(resize, 0, 1);
  parallel_runs(resize.batch * height, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kRows, static_cast<std::size_t>(2 * output_row));
    int64_t held[2] = {-1, -1};  // input rows of all images, by their last bit
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / height, from = heights.begins[static_cast<std::size_t>(row % height)];
      const int64_t count = heights.begins[static_cast<std::size_t>(row % height) + 1] - from;
      int64_t places[2] = {0, 0};
      for (int64_t k = 0; k < count; ++k) {
        // Neighbours, which have a place each.
        const int64_t needed = heights.places[static_cast<std::size_t>(from + k)], slot = needed % 2;
        const int64_t number = image * resize.input[0] + needed;
        places[k] = slot * output_row;
        if (held[slot] == number) continue;
        held[slot] = number;
        table.weighted_rows(widths.rows(x + number * input_row, resize.channels, memory + places[k]));
      }
      const int64_t begins[2] = {0, count};
      table.weighted_rows({memory, begins, places, heights.weights.data() + from, 1, output_row, y + row * output_row});
    }
  });
}

void resize_backward(const Resize& resize, const float* gradient, float* x_gradient) {
  const KernelTable& table = kernels();
  const int64_t input_row = resize.input[1] * resize.channels, output_row = resize.output[1] * resize.channels;
  const int64_t height = resize.input[0];
  const Taps widths = backward_taps(resize, 1, resize.channels), heights = backward_taps(resize, 0, output_row);
  parallel_runs(resize.batch * height, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kRows, static_cast<std::size_t>(output_row));
    for (int64_t row = begin; row < end; ++row) {
      const float* image = gradient + row / height * resize.output[0] * output_row;
      const int64_t* begins = heights.begins.data() + row % height;
      table.weighted_rows({image, begins, heights.places.data(), heights.weights.data(), 1, output_row, memory});
      table.weighted_rows(widths.rows(memory, resize.channels, x_gradient + row * input_row));
    }
  });
}

}  // namespace dwsep
