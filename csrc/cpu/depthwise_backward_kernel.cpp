#include "cpu/depthwise_backward_kernel.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tiling.h"
#include "cpu/scratch.h"

namespace dwsep {
namespace {

enum Axis { kDepth, kHeight, kWidth };

// All that is the same for every tile.
struct Plan {
  const KernelTable& table;
  const ConvProblem& problem;
  const DepthwiseBackwardTensors& tensors;
  Activation activation;
  std::array<ConvAxis, 3> axes;
  std::array<std::vector<AxisTile>, 3> tiles;
  const float* weights;  // [input block][m][tap][lane]
  const float* bias;     // [input block][m][lane]
  int64_t lanes, blocks, taps;
  int64_t group;             // channel blocks of a tile
  int64_t x_plane, g_plane;  // floats of the largest
  int64_t element_size;

  int64_t tile_count() const {
    return static_cast<int64_t>(tiles[kDepth].size() * tiles[kHeight].size() * tiles[kWidth].size());
  }
  int64_t sums_of_block() const { return problem.multiplier * (taps + 1) * lanes; }
};

int64_t largest(const std::vector<AxisTile>& tiles, Range AxisTile::*range) {
  int64_t size = 0;
  for (const AxisTile& tile : tiles) size = std::max(size, (tile.*range).size());
  return size;
}

void measure_planes(Plan& plan) {
  plan.x_plane = plan.g_plane = plan.lanes;
  for (const auto& tiles : plan.tiles) {
    plan.x_plane *= std::max<int64_t>(1, largest(tiles, &AxisTile::x));
    plan.g_plane *= std::max<int64_t>(1, largest(tiles, &AxisTile::gradient));
  }
}

// As few tiles as keep a tile's planes within half of the L2 cache, cutting where the taps reach least in proportion.
void cut(Plan& plan) {
  const int64_t budget = l2_cache_bytes() / 2 / static_cast<int64_t>(sizeof(float));
  const bool recompute = plan.activation != Activation::kNone;
  std::array<int64_t, 3> counts = {1, 1, 1};
  const auto make = [&](int axis) {
    const auto at = static_cast<std::size_t>(axis);
    plan.tiles[at] = axis_tiles(plan.axes[at], counts[at], axis != kWidth, recompute);
  };
  for (int axis = 0; axis < 3; ++axis) make(axis);
  measure_planes(plan);
  const auto tile_floats = [&] { return plan.x_plane + plan.problem.multiplier * plan.g_plane; };
  while (tile_floats() > budget) {
    int chosen = -1;
    double most = 1.0;
    for (int axis = 0; axis < 3; ++axis) {
      const ConvAxis& a = plan.axes[static_cast<std::size_t>(axis)];
      const int64_t extent = std::max(a.input, a.output) / counts[static_cast<std::size_t>(axis)];
      const double reach = static_cast<double>((a.kernel - 1) * a.dilation + 1) + (axis == kWidth ? 64.0 : 0.0);
      const double ratio = static_cast<double>(extent) / reach;
      if (extent >= 2 && (chosen < 0 || ratio > most)) {
        chosen = axis;
        most = ratio;
      }
    }
    if (chosen < 0) break;
    counts[static_cast<std::size_t>(chosen)] *= 2;
    make(chosen);
    measure_planes(plan);
  }
  // Several blocks of channels together read whole stretches of a channels-last pixel.
  const bool together = plan.problem.multiplier == 1 && plan.tensors.gradient_strides.channel == 1;
  plan.group = together ? std::max<int64_t>(1, 64 / plan.lanes) : 1;
  while (plan.group > 1 && plan.group * tile_floats() > budget) plan.group /= 2;
}

template <class T>
float element(const void* source, int64_t index);
template <>
float element<float>(const void* source, int64_t index) {
  return static_cast<const float*>(source)[index];
}
template <>
float element<uint16_t>(const void* source, int64_t index) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(source)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
void pack_blocks(const Plan& plan, const WeightSources& sources, float* weights, float* bias) {
  const int64_t multiplier = plan.problem.multiplier;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    for (int64_t m = 0; m < multiplier; ++m) {
      for (int64_t lane = 0; lane < plan.lanes; ++lane) {
        const int64_t channel = block * plan.lanes + lane, inner = channel * multiplier + m;
        const bool inside = channel < plan.problem.channels;
        float* target = weights + (block * multiplier + m) * plan.taps * plan.lanes + lane;
        for (int64_t tap = 0; tap < plan.taps; ++tap) {
          target[tap * plan.lanes] = inside ? element<T>(sources.depthwise, inner * plan.taps + tap) : 0.0f;
        }
        bias[(block * multiplier + m) * plan.lanes + lane] =
            inside && sources.depthwise_bias != nullptr ? element<T>(sources.depthwise_bias, inner) : 0.0f;
      }
    }
  }
}

const void* advanced(const void* pointer, int64_t bytes) { return static_cast<const char*>(pointer) + bytes; }
void* advanced(void* pointer, int64_t bytes) { return static_cast<char*>(pointer) + bytes; }

// The taps of a row's correlation, kept while the rows have the same ones inside the image.
struct TapList {
  std::array<int64_t, 6> key{-1, -1, -1, -1, -1, -1};
  std::vector<Tap> taps;
};

// One tile: one image's rectangle, one group of channel blocks. Its memory is the thread's scratch.
class PlaneTile {
 public:
  PlaneTile(const Plan& plan, float* memory, float* sums)
      : plan_(plan),
        sums_(sums),
        x_planes_(memory),
        g_planes_(x_planes_ + plan.group * plan.x_plane),
        rows_(g_planes_ + plan.group * plan.problem.multiplier * plan.g_plane) {
    const int64_t rows = largest(plan.tiles[kWidth], &AxisTile::input);
    zeros_ = rows_ + plan.group * std::max(rows, largest(plan.tiles[kWidth], &AxisTile::gradient)) * plan.lanes;
    std::fill_n(zeros_, largest(plan.tiles[kWidth], &AxisTile::x) * plan.lanes, 0.0f);
  }

  static int64_t floats(const Plan& plan) {
    const int64_t row = std::max({largest(plan.tiles[kWidth], &AxisTile::input),
                                  largest(plan.tiles[kWidth], &AxisTile::gradient), int64_t{1}});
    return plan.group * (plan.x_plane + plan.problem.multiplier * plan.g_plane + row * plan.lanes) +
           (largest(plan.tiles[kWidth], &AxisTile::x) + 1) * plan.lanes;
  }

  void run(int64_t image, int64_t tile, int64_t first_block) {
    const auto widths = static_cast<int64_t>(plan_.tiles[kWidth].size());
    const auto heights = static_cast<int64_t>(plan_.tiles[kHeight].size());
    image_ = image;
    block_ = first_block;
    group_ = std::min(plan_.group, plan_.blocks - first_block);
    part_[kWidth] = &plan_.tiles[kWidth][static_cast<std::size_t>(tile % widths)];
    part_[kHeight] = &plan_.tiles[kHeight][static_cast<std::size_t>(tile / widths % heights)];
    part_[kDepth] = &plan_.tiles[kDepth][static_cast<std::size_t>(tile / widths / heights)];
    const bool below = plan_.tensors.weight_gradient != nullptr || plan_.activation != Activation::kNone;
    if (below) gather_x();
    gather_gradient();
    if (plan_.activation != Activation::kNone) differentiate_activation();
    if (plan_.tensors.x_gradient != nullptr) compute_x_gradient();
    if (plan_.tensors.weight_gradient != nullptr) add_weight_gradient();
    if (plan_.tensors.bias_gradient != nullptr) add_bias_gradient();
  }

 private:
  const Plan& plan_;
  float* sums_;
  float* x_planes_;
  float* g_planes_;
  float* rows_;
  float* zeros_;
  int64_t image_ = 0, block_ = 0, group_ = 0;
  const AxisTile* part_[3] = {};
  std::vector<TapList> lists_;
  std::vector<const float*> pointers_;

  int64_t channels() const {
    return std::min(plan_.problem.channels - block_ * plan_.lanes, group_ * plan_.lanes);
  }

  // Floats from the first pixel of a plane to (d, h, w), positions in the axes of the plane.
  int64_t x_offset(int64_t d, int64_t h, int64_t w) const {
    const Range& rd = part_[kDepth]->x;
    const Range& rh = part_[kHeight]->x;
    const Range& rw = part_[kWidth]->x;
    return (((d - rd.begin) * rh.size() + (h - rh.begin)) * rw.size() + (w - rw.begin)) * plan_.lanes;
  }
  int64_t g_offset(int64_t d, int64_t h, int64_t w) const {
    const Range& rd = part_[kDepth]->gradient;
    const Range& rh = part_[kHeight]->gradient;
    const Range& rw = part_[kWidth]->gradient;
    return (((d - rd.begin) * rh.size() + (h - rh.begin)) * rw.size() + (w - rw.begin)) * plan_.lanes;
  }

  // Fills planes from a tensor; zeros in the columns outside it.
  void gather(const void* source, const Strides& strides, int64_t first_channel, int64_t channel_step,
              Range AxisTile::*range, int64_t width, float* planes, int64_t plane_size) const {
    const Range& rd = part_[kDepth]->*range;
    const Range& rh = part_[kHeight]->*range;
    const Range& rw = part_[kWidth]->*range;
    const int64_t lanes = plan_.lanes;
    const int64_t begin = std::clamp<int64_t>(0, rw.begin, rw.end), end = std::clamp(width, begin, rw.end);
    const RowCopy copy = {plan_.problem.element_type, strides.axis[kWidth], strides.channel * channel_step, end - begin,
                          channels(),                 plane_size};
    int64_t offset = 0;
    for (int64_t d = rd.begin; d < rd.end; ++d) {
      for (int64_t h = rh.begin; h < rh.end; ++h) {
        for (int64_t b = 0; b < group_; ++b) {
          float* row = planes + b * plane_size + offset;
          std::fill_n(row, (begin - rw.begin) * lanes, 0.0f);
          std::fill_n(row + (end - rw.begin) * lanes, (rw.end - end) * lanes, 0.0f);
        }
        const int64_t at = image_ * strides.image + first_channel * strides.channel + d * strides.axis[kDepth] +
                           h * strides.axis[kHeight] + begin * strides.axis[kWidth];
        if (end > begin) {
          plan_.table.gather_row(copy, advanced(source, at * plan_.element_size),
                                 planes + offset + (begin - rw.begin) * lanes);
        }
        offset += rw.size() * lanes;
      }
    }
  }

  void gather_x() {
    gather(plan_.tensors.x, plan_.tensors.x_strides, block_ * plan_.lanes, 1, &AxisTile::x,
           plan_.axes[kWidth].input, x_planes_, plan_.x_plane);
  }

  void gather_gradient() {
    const int64_t multiplier = plan_.problem.multiplier;
    for (int64_t m = 0; m < multiplier; ++m) {
      gather(plan_.tensors.gradient, plan_.tensors.gradient_strides, block_ * plan_.lanes * multiplier + m, multiplier,
             &AxisTile::gradient, plan_.axes[kWidth].output, g_planes_ + m * plan_.g_plane,
             multiplier * plan_.g_plane);
    }
  }

  // Multiplies the gradient by the activation's derivative at the convolution's output, which is computed anew.
  void differentiate_activation() {
    const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
    const Range columns = {std::max<int64_t>(part_[kWidth]->gradient.begin, 0),
                           std::min(part_[kWidth]->gradient.end, aw.output)};
    if (columns.size() <= 0) return;
    const int64_t multiplier = plan_.problem.multiplier, lanes = plan_.lanes;
    TapList list;
    for (int64_t od = part_[kDepth]->gradient.begin; od < part_[kDepth]->gradient.end; ++od) {
      for (int64_t oh = part_[kHeight]->gradient.begin; oh < part_[kHeight]->gradient.end; ++oh) {
        const Range kd = taps_inside(ad, od), kh = taps_inside(ah, oh);
        const std::array<int64_t, 6> key = {kd.begin, kd.end, kh.begin, kh.end, 0, 0};
        // Relative to the input under tap 0 of the first column, which may lie outside the plane.
        const int64_t base = x_offset(ad.position(od, 0), ah.position(oh, 0), aw.position(columns.begin, 0));
        if (list.key != key) {
          list.key = key;
          list.taps.clear();
          for (int64_t d = kd.begin; d < kd.end; ++d) {
            for (int64_t h = kh.begin; h < kh.end; ++h) {
              for (int64_t w = part_[kWidth]->taps.begin; w < part_[kWidth]->taps.end; ++w) {
                const int64_t source = x_offset(ad.position(od, d), ah.position(oh, h), aw.position(columns.begin, w));
                list.taps.push_back({source - base, tap_index(d, h, w) * lanes});
              }
            }
          }
        }
        for (int64_t b = 0; b < group_; ++b) {
          for (int64_t m = 0; m < multiplier; ++m) {
            const int64_t part = (block_ + b) * multiplier + m;
            plan_.table.correlate_row({list.taps.data(), static_cast<int64_t>(list.taps.size()),
                                       x_planes_ + b * plan_.x_plane + base, plan_.weights + part * plan_.taps * lanes,
                                       plan_.bias + part * lanes, aw.stride * lanes, rows_, lanes, columns.size(),
                                       Activation::kNone});
            float* gradient = g_planes_ + (b * multiplier + m) * plan_.g_plane + g_offset(od, oh, columns.begin);
            plan_.table.activation_gradient_row(plan_.activation, rows_, gradient, columns.size());
          }
        }
      }
    }
  }

  int64_t tap_index(int64_t d, int64_t h, int64_t w) const {
    return (d * plan_.axes[kHeight].kernel + h) * plan_.axes[kWidth].kernel + w;
  }

  static Range taps_inside(const ConvAxis& axis, int64_t out) {
    const int64_t first = axis.position(out, 0);
    const int64_t begin = std::max<int64_t>(0, ceil_div(-first, axis.dilation));
    const int64_t end = std::min(axis.kernel, floor_div(axis.input - 1 - first, axis.dilation) + 1);
    return {begin, std::max(begin, end)};
  }

  // Taps between which the output position under an input position exists, if the stride divides its distance.
  static Range taps_reaching(const ConvAxis& axis, int64_t in) {
    const int64_t at = in + axis.pad_low;
    const int64_t begin = std::max<int64_t>(0, ceil_div(at - (axis.output - 1) * axis.stride, axis.dilation));
    const int64_t end = std::min(axis.kernel, floor_div(at, axis.dilation) + 1);
    return {begin, std::max(begin, end)};
  }

  void compute_x_gradient() {
    const DepthwiseBackwardTensors& t = plan_.tensors;
    const Strides& strides = t.x_gradient_strides;
    const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
    const Range &rd = part_[kDepth]->input, &rh = part_[kHeight]->input, &rw = part_[kWidth]->input;
    const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
    const bool direct = plan_.problem.element_type == ElementType::kFloat32 && strides.channel == 1 &&
                        channels() == group_ * lanes;
    const int64_t residues = std::min(aw.stride, rw.size());
    lists_.resize(static_cast<std::size_t>(residues));
    for (TapList& list : lists_) list.key[0] = -1;
    for (int64_t d = rd.begin; d < rd.end; ++d) {
      for (int64_t h = rh.begin; h < rh.end; ++h) {
        const int64_t at = image_ * strides.image + block_ * lanes * strides.channel + d * strides.axis[kDepth] +
                           h * strides.axis[kHeight] + rw.begin * strides.axis[kWidth];
        void* target = advanced(t.x_gradient, at * plan_.element_size);
        const Range kd = taps_reaching(ad, d), kh = taps_reaching(ah, h);
        const int64_t phase_d = (d + ad.pad_low) % ad.stride, phase_h = (h + ah.pad_low) % ah.stride;
        const std::array<int64_t, 6> key = {kd.begin, kd.end, kh.begin, kh.end, phase_d, phase_h};
        const int64_t base_d = floor_div(d + ad.pad_low, ad.stride), base_h = floor_div(h + ah.pad_low, ah.stride);
        const int64_t base = g_offset(base_d, base_h, 0);
        for (int64_t residue = 0; residue < residues; ++residue) {
          const int64_t first = rw.begin + residue;
          TapList& list = lists_[static_cast<std::size_t>(residue)];
          if (list.key != key) {
            list.key = key;
            list.taps.clear();
            for (int64_t m = 0; m < multiplier; ++m) add_taps(list, kd, kh, d, h, first, base, m);
          }
          const int64_t count = ceil_div(rw.end - first, aw.stride);
          for (int64_t b = 0; b < group_; ++b) {
            float* out = direct ? static_cast<float*>(target) + b * lanes + residue * strides.axis[kWidth]
                                : rows_ + (b * rw.size() + residue) * lanes;
            const int64_t out_stride = aw.stride * (direct ? strides.axis[kWidth] : lanes);
            plan_.table.correlate_row({list.taps.data(), static_cast<int64_t>(list.taps.size()),
                                       g_planes_ + b * multiplier * plan_.g_plane + base,
                                       plan_.weights + (block_ + b) * multiplier * plan_.taps * lanes, nullptr, lanes,
                                       out, out_stride, count, Activation::kNone});
          }
        }
        if (!direct) {
          const RowCopy copy = {plan_.problem.element_type, strides.axis[kWidth], strides.channel, rw.size(),
                                channels(),                 rw.size() * lanes};
          plan_.table.scatter_row(copy, rows_, target);
        }
      }
    }
  }

  void add_taps(TapList& list, Range kd, Range kh, int64_t d, int64_t h, int64_t first, int64_t base,
                int64_t m) const {
    const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
    const Range& columns = part_[kWidth]->gradient;
    const int64_t last = first + (part_[kWidth]->input.end - 1 - first) / aw.stride * aw.stride;
    for (int64_t td = kd.begin; td < kd.end; ++td) {
      const int64_t at_d = d + ad.pad_low - td * ad.dilation;
      if (at_d % ad.stride != 0) continue;
      for (int64_t th = kh.begin; th < kh.end; ++th) {
        const int64_t at_h = h + ah.pad_low - th * ah.dilation;
        if (at_h % ah.stride != 0) continue;
        for (int64_t tw = 0; tw < aw.kernel; ++tw) {
          const int64_t at_w = first + aw.pad_low - tw * aw.dilation;
          if (at_w % aw.stride != 0) continue;
          // A tap that meets the gradient for no column of this row is not in the plane.
          const int64_t from = at_w / aw.stride, to = (last + aw.pad_low - tw * aw.dilation) / aw.stride;
          if (to < 0 || from >= aw.output || from < columns.begin || to >= columns.end) continue;
          list.taps.push_back({m * plan_.g_plane + g_offset(at_d / ad.stride, at_h / ah.stride, from) - base,
                               (m * plan_.taps + tap_index(td, th, tw)) * plan_.lanes});
        }
      }
    }
  }

  void add_weight_gradient() {
    const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
    const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
    const Range &kh = part_[kHeight]->taps, &kw = part_[kWidth]->taps;
    const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
    if (rw.size() <= 0 || kh.size() <= 0 || kw.size() <= 0) return;
    for (int64_t b = 0; b < group_; ++b) {
      const float* x_plane = x_planes_ + b * plan_.x_plane;
      for (int64_t m = 0; m < multiplier; ++m) {
        const float* g_plane = g_planes_ + (b * multiplier + m) * plan_.g_plane;
        float* sums = sums_ + (block_ + b) * plan_.sums_of_block() + m * (plan_.taps + 1) * lanes;
        for (int64_t td = part_[kDepth]->taps.begin; td < part_[kDepth]->taps.end; ++td) {
          pointers_.clear();
          int64_t count = 0;
          for (int64_t od = rd.begin; od < rd.end; ++od) {
            const int64_t d = ad.position(od, td);
            if (d < 0 || d >= ad.input) continue;
            for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
              pointers_.push_back(g_plane + g_offset(od, oh, rw.begin));
              for (int64_t th = kh.begin; th < kh.end; ++th) {
                const int64_t h = ah.position(oh, th);
                const bool inside = h >= 0 && h < ah.input;
                pointers_.push_back(inside ? x_plane + x_offset(d, h, aw.position(rw.begin, kw.begin)) : zeros_);
              }
              ++count;
            }
          }
          if (count == 0) continue;
          plan_.table.weight_gradient_rows({pointers_.data(), count, rw.size(), aw.stride * lanes, aw.dilation * lanes,
                                            kh.size(), kw.size(), sums + tap_index(td, kh.begin, kw.begin) * lanes,
                                            aw.kernel * lanes});
        }
      }
    }
  }

  void add_bias_gradient() {
    const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
    const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
    for (int64_t b = 0; b < group_; ++b) {
      for (int64_t m = 0; m < multiplier; ++m) {
        const float* g_plane = g_planes_ + (b * multiplier + m) * plan_.g_plane;
        float* sums = sums_ + (block_ + b) * plan_.sums_of_block() + (m * (plan_.taps + 1) + plan_.taps) * lanes;
        for (int64_t od = rd.begin; od < rd.end; ++od) {
          for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
            plan_.table.sum_row(g_plane + g_offset(od, oh, rw.begin), rw.size(), sums);
          }
        }
      }
    }
  }
};

void store_element(void* target, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat32) {
    static_cast<float*>(target)[index] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  bits = nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  static_cast<uint16_t*>(target)[index] = static_cast<uint16_t>(bits);
}

// Sums the parts in their order and writes the parameters' gradients.
void reduce(const Plan& plan, const float* sums, int64_t parts) {
  const int64_t multiplier = plan.problem.multiplier, lanes = plan.lanes;
  const int64_t part_size = plan.blocks * plan.sums_of_block();
  const int64_t grain = std::max<int64_t>(1, 16384 / ((plan.taps + 1) * parts));
  parallel_for(plan.problem.inner_channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t inner = begin; inner < end; ++inner) {
      const int64_t channel = inner / multiplier, m = inner % multiplier;
      const float* source =
          sums + channel / lanes * plan.sums_of_block() + m * (plan.taps + 1) * lanes + channel % lanes;
      for (int64_t tap = 0; tap <= plan.taps; ++tap) {
        float sum = source[tap * lanes];
        for (int64_t part = 1; part < parts; ++part) sum += source[part * part_size + tap * lanes];
        const bool is_bias = tap == plan.taps;
        void* target = is_bias ? plan.tensors.bias_gradient : plan.tensors.weight_gradient;
        const int64_t index = is_bias ? inner : inner * plan.taps + tap;
        if (target != nullptr) store_element(target, plan.problem.element_type, index, sum);
      }
    }
  });
}

}  // namespace

void depthwise_conv_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const DepthwiseBackwardTensors& tensors) {
  const KernelTable& table = kernels();
  Plan plan = {table,   problem, tensors, activation, {conv_axis(problem, 0), conv_axis(problem, 1), conv_axis(problem, 2)},
               {},      nullptr, nullptr, table.lanes, ceil_div(problem.channels, table.lanes),
               problem.kernel[0] * problem.kernel[1] * problem.kernel[2],
               1,       0,       0,       problem.element_type == ElementType::kFloat32 ? 4 : 2};
  cut(plan);
  const int64_t multiplier = problem.multiplier;
  const int64_t groups = ceil_div(plan.blocks, plan.group);
  // Parts of the images, each with sums of its own, so that there is work for the threads where channels are few. Their
  // number depends on the shape alone, so that the result does not depend on the threads.
  const int64_t items = problem.batch * plan.tile_count();
  const int64_t parts = std::clamp<int64_t>(ceil_div(16, groups), 1, std::max<int64_t>(1, items));

  const int64_t weight_floats = plan.blocks * multiplier * plan.taps * plan.lanes;
  const int64_t bias_floats = plan.blocks * multiplier * plan.lanes;
  const int64_t sum_floats = parts * plan.blocks * plan.sums_of_block();
  float* packed = scratch(Scratch::kPack, static_cast<std::size_t>(weight_floats + bias_floats + sum_floats));
  plan.weights = packed;
  plan.bias = packed + weight_floats;
  float* sums = packed + weight_floats + bias_floats;
  if (problem.element_type == ElementType::kFloat32) {
    pack_blocks<float>(plan, weights, packed, packed + weight_floats);
  } else {
    pack_blocks<uint16_t>(plan, weights, packed, packed + weight_floats);
  }
  std::fill_n(sums, sum_floats, 0.0f);

  parallel_for(groups * parts, 1, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(PlaneTile::floats(plan)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit % groups, part = unit / groups;
      PlaneTile tile(plan, memory, sums + part * plan.blocks * plan.sums_of_block());
      for (int64_t item = items * part / parts; item < items * (part + 1) / parts; ++item) {
        tile.run(item / plan.tile_count(), item % plan.tile_count(), group * plan.group);
      }
    }
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr) reduce(plan, sums, parts);
}

}  // namespace dwsep
