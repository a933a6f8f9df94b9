#include "cpu/depthwise_backward_tile.h"

#include <algorithm>
#include <array>

#include "cpu/elements.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"

namespace dwsep {
namespace {

int64_t row_floats(const PlanePlan& plan) {
  return std::max({plan.largest(kWidth, &AxisTile::input), plan.largest(kWidth, &AxisTile::gradient), int64_t{1}}) *
         plan.lanes;
}

int64_t zero_floats(const PlanePlan& plan) { return (plan.largest(kWidth, &AxisTile::x) + 1) * plan.lanes; }

}  // namespace

int64_t sums_of_block(const PlanePlan& plan) { return plan.problem.multiplier * (plan.taps + 1) * plan.lanes; }

int64_t BackwardTile::floats_without_gradient(const PlanePlan& plan) {
  return plan.group * (plan.x_plane + row_floats(plan)) + zero_floats(plan);
}

int64_t BackwardTile::floats(const PlanePlan& plan) {
  return floats_without_gradient(plan) + plan.group * plan.problem.multiplier * plan.g_plane;
}

BackwardTile::BackwardTile(const PlanePlan& plan, const DepthwiseBackwardTensors& tensors, Activation activation,
                           float* memory, float* sums)
    : PlaneTile(plan, memory),
      tensors_(tensors),
      activation_(activation),
      sums_(sums),
      rows_(memory + plan.group * plan.x_plane),
      zeros_(rows_ + plan.group * row_floats(plan)),
      own_planes_(zeros_ + zero_floats(plan)),
      g_planes_(own_planes_) {
  std::fill_n(zeros_, zero_floats(plan), 0.0f);
}

void BackwardTile::set_stage(const StageBackward& stage, double* affine_sums) {
  staged_ = true;
  x_load_ = {nullptr, stage.scale, stage.shift, stage.activation};
  if (stage.correction != nullptr) {
    gradient_load_ = {stage.y, stage.correction, stage.correction + stage.row_length, Activation::kNone};
  }
  affine_sums_ = affine_sums;
}

void BackwardTile::run(const TilePlace& place, const TilePlace* next) {
  move_to(place.image, place.tile, place.first_block);
  g_planes_ = own_planes_;
  if (tensors_.weight_gradient != nullptr || activation_ != Activation::kNone) {
    gather_x(tensors_.x, tensors_.x_strides, staged_ ? &x_load_ : nullptr);
  }
  gather_gradient();
  if (next != nullptr) look_ahead(*next);
  if (activation_ != Activation::kNone) differentiate_activation();
  if (tensors_.x_gradient != nullptr) compute_x_gradient();
  if (tensors_.weight_gradient != nullptr) add_weight_gradient();
  if (tensors_.bias_gradient != nullptr) add_bias_gradient();
  stop_asking();
}

void BackwardTile::look_ahead(const TilePlace& next) {
  const bool wants_weight = tensors_.weight_gradient != nullptr;
  expect(next, tensors_.gradient, tensors_.gradient_strides, plan_.problem.multiplier, &AxisTile::gradient,
         plan_.axes[kWidth].output);
  if (wants_weight || activation_ != Activation::kNone) {
    expect(next, tensors_.x, tensors_.x_strides, 1, &AxisTile::x, plan_.axes[kWidth].input);
  }
  const auto pixels = [&](Range AxisTile::* range) {
    return (part_[kDepth]->*range).size() * (part_[kHeight]->*range).size() * (part_[kWidth]->*range).size();
  };
  const int64_t outputs = wants_weight ? pixels(&AxisTile::output) * plan_.problem.multiplier : 0;
  begin_asking(group_ * (outputs + (tensors_.x_gradient != nullptr ? pixels(&AxisTile::input) : 0)));
}

void BackwardTile::run_on(int64_t image, int64_t tile, int64_t first_block, const float* gradient_planes) {
  move_to(image, tile, first_block);
  g_planes_ = gradient_planes;
  if (tensors_.weight_gradient != nullptr) gather_x(tensors_.x, tensors_.x_strides);
  if (tensors_.x_gradient != nullptr) compute_x_gradient();
  if (tensors_.weight_gradient != nullptr) add_weight_gradient();
  if (tensors_.bias_gradient != nullptr) add_bias_gradient();
}

void BackwardTile::gather_gradient() {
  const int64_t multiplier = plan_.problem.multiplier;
  for (int64_t m = 0; m < multiplier; ++m) {
    gather(tensors_.gradient, tensors_.gradient_strides, block_ * plan_.lanes * multiplier + m, multiplier,
           &AxisTile::gradient, plan_.axes[kWidth].output, own_planes_ + m * plan_.g_plane, multiplier * plan_.g_plane,
           gradient_load_.y != nullptr ? &gradient_load_ : nullptr);
  }
}

// Multiplies the gradient by the activation's derivative at the convolution's output, which is computed anew.
void BackwardTile::differentiate_activation() {
  const Range &rd = part_[kDepth]->gradient, &rh = part_[kHeight]->gradient, &rw = part_[kWidth]->gradient;
  const Range columns = {std::max<int64_t>(rw.begin, 0), std::min(rw.end, plan_.axes[kWidth].output)};
  if (columns.size() <= 0) return;
  for (int64_t od = rd.begin; od < rd.end; ++od) {
    for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
      correlate_outputs(od, oh, columns, [&](int64_t b, int64_t m, CorrelateRow& job) {
        job.out = rows_;
        job.out_stride = plan_.lanes;
        plan_.table.correlate_row(job);
        float* gradient =
            own_planes_ + (b * plan_.problem.multiplier + m) * plan_.g_plane + g_offset(od, oh, columns.begin);
        plan_.table.activation_gradient_row(activation_, rows_, gradient, columns.size());
      });
    }
  }
}

void BackwardTile::compute_x_gradient() {
  const DepthwiseBackwardTensors& t = tensors_;
  const Strides& strides = t.x_gradient_strides;
  const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
  const Range &rd = part_[kDepth]->input, &rh = part_[kHeight]->input, &rw = part_[kWidth]->input;
  const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
  const bool direct = !staged_ && plan_.problem.element_type == ElementType::kFloat32 && strides.channel == 1 &&
                      channels() == group_ * lanes;
  const int64_t residues = std::min(aw.stride, rw.size());
  const RowCopy copy = {plan_.problem.element_type,
                        strides.axis[kWidth],
                        strides.channel,
                        rw.size(),
                        channels(),
                        rw.size() * lanes,
                        stream_};
  const bool piecewise = !staged_ && !direct && group_ == 1 && residues == 1;
  // Rows at the same place between two strides have the same taps, away from the image's edges.
  const int64_t phases_d = std::min<int64_t>(ad.stride, 4), phases_h = std::min<int64_t>(ah.stride, 4);
  lists_.resize(static_cast<std::size_t>(residues * phases_d * phases_h));
  for (TapList& list : lists_) list.key[0] = -1;
  for (int64_t d = rd.begin; d < rd.end; ++d) {
    for (int64_t h = rh.begin; h < rh.end; ++h) {
      const int64_t at = image_ * strides.image + block_ * lanes * strides.channel + d * strides.axis[kDepth] +
                         h * strides.axis[kHeight] + rw.begin * strides.axis[kWidth];
      void* target = advanced(t.x_gradient, at * plan_.element_size);
      const Range kd = ad.taps_reaching(d), kh = ah.taps_reaching(h);
      const int64_t phase_d = (d + ad.pad_low) % ad.stride, phase_h = (h + ah.pad_low) % ah.stride;
      const std::array<int64_t, 6> key = {kd.begin, kd.end, kh.begin, kh.end, phase_d, phase_h};
      const int64_t base_d = floor_div(d + ad.pad_low, ad.stride), base_h = floor_div(h + ah.pad_low, ah.stride);
      const int64_t base = g_offset(base_d, base_h, 0);
      for (int64_t residue = 0; residue < residues; ++residue) {
        const int64_t first = rw.begin + residue;
        const int64_t phase = (d % ad.stride % phases_d * phases_h + h % ah.stride % phases_h) * residues + residue;
        TapList& list = lists_[static_cast<std::size_t>(phase)];
        if (!list.matches(key)) {
          list.key = key;
          list.taps.clear();
          for (int64_t m = 0; m < multiplier; ++m) add_taps(list, kd, kh, d, h, first, base, m);
        }
        const int64_t count = ceil_div(rw.end - first, aw.stride);
        for (int64_t b = 0; b < group_; ++b) {
          float* out = direct ? static_cast<float*>(target) + b * lanes + residue * strides.axis[kWidth]
                              : rows_ + (b * rw.size() + residue) * lanes;
          const int64_t out_stride = aw.stride * (direct ? strides.axis[kWidth] : lanes);
          RowCopy piece = copy;
          CorrelateRow job = {};
          job.taps = list.taps.data();
          job.tap_count = static_cast<int64_t>(list.taps.size());
          if (aw.stride == 1 && aw.dilation == 1) job.run = list.run;
          job.run_step = -lanes;
          job.source = g_planes_ + b * multiplier * plan_.g_plane + base;
          job.weights = plan_.weights + (block_ + b) * multiplier * plan_.taps * lanes;
          job.step = lanes;
          job.out_stride = out_stride;
          job.stream = direct && stream_;
          const float* source = job.source;
          in_stretches(count, [&](int64_t from, int64_t pixels) {
            ask_for(pixels);
            job.source = source + from * lanes;
            job.out = piecewise ? rows_ : out + from * out_stride;
            job.pixels = pixels;
            plan_.table.correlate_row(job);
            piece.pixels = pixels;
            void* place = advanced(target, from * strides.axis[kWidth] * plan_.element_size);
            if (piecewise) plan_.table.scatter_row(piece, rows_, place);
          });
        }
      }
      if (staged_) {
        write_stage_row(static_cast<float*>(target), at);
      } else if (!direct && !piecewise) {
        plan_.table.scatter_row(copy, rows_, target);
      }
    }
  }
}

// A row of gradients of z, in rows_, as those of x.
void BackwardTile::write_stage_row(float* target, int64_t at) const {
  const int64_t pixels = part_[kWidth]->input.size(), channel = block_ * plan_.lanes;
  const bool affine = x_load_.scale != nullptr;
  plan_.table.stage_gradient_row({rows_, plan_.lanes, pixels * plan_.lanes, static_cast<const float*>(tensors_.x) + at,
                                  affine ? x_load_.scale + channel : nullptr,
                                  affine ? x_load_.shift + channel : nullptr, x_load_.activation,
                                  tensors_.x_strides.axis[kWidth], pixels, channels(), target, false,
                                  affine ? affine_sums_ + channel : nullptr, plan_.blocks * plan_.lanes});
}

void BackwardTile::add_taps(TapList& list, Range kd, Range kh, int64_t d, int64_t h, int64_t first, int64_t base,
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
      list.run = 0;
      // The last tap first: its operand is the first in memory.
      for (int64_t tw = aw.kernel - 1; tw >= 0; --tw) {
        const int64_t at_w = first + aw.pad_low - tw * aw.dilation;
        if (at_w % aw.stride != 0) continue;
        // A tap that meets the gradient for no column of this row is not in the plane.
        const int64_t from = at_w / aw.stride, to = (last + aw.pad_low - tw * aw.dilation) / aw.stride;
        if (to < 0 || from >= aw.output || from < columns.begin || to >= columns.end) continue;
        ++list.run;
        list.taps.push_back({m * plan_.g_plane + g_offset(at_d / ad.stride, at_h / ah.stride, from) - base,
                             (m * plan_.taps + plan_.tap_index(td, th, tw)) * plan_.lanes});
      }
    }
  }
}

void BackwardTile::add_weight_gradient() {
  const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
  const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
  const Range &kh = part_[kHeight]->taps, &kw = part_[kWidth]->taps;
  const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
  if (rw.size() <= 0 || kh.size() <= 0 || kw.size() <= 0) return;
  for (int64_t b = 0; b < group_; ++b) {
    const float* x_plane = x_planes_ + b * plan_.x_plane;
    for (int64_t m = 0; m < multiplier; ++m) {
      const float* g_plane = g_planes_ + (b * multiplier + m) * plan_.g_plane;
      float* sums = sums_ + (block_ + b) * sums_of_block(plan_) + m * (plan_.taps + 1) * lanes;
      for (int64_t td = part_[kDepth]->taps.begin; td < part_[kDepth]->taps.end; ++td) {
        pointers_.clear();
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
          }
        }
        add_weight_gradient_rows({pointers_.data(), 0, rw.size(), aw.stride * lanes, aw.dilation * lanes, kh.size(),
                                  kw.size(), sums + plan_.tap_index(td, kh.begin, kw.begin) * lanes,
                                  aw.kernel * lanes});
      }
    }
  }
}

// All rows in pointers_, a few at a time: what is ahead is asked for in between.
void BackwardTile::add_weight_gradient_rows(WeightGradientRows job) {
  const int64_t width = 1 + job.kernel_rows, count = static_cast<int64_t>(pointers_.size()) / width;
  const int64_t together = asks() ? std::max<int64_t>(1, 128 / job.pixels) : count;
  const int64_t kernel_planes = part_[kDepth]->taps.size();
  for (int64_t row = 0; row < count; row += together) {
    job.rows = pointers_.data() + row * width;
    job.row_count = std::min(together, count - row);
    ask_for(ceil_div(job.row_count * job.pixels, kernel_planes));
    plan_.table.weight_gradient_rows(job);
  }
}

void BackwardTile::add_bias_gradient() {
  const Range &rd = part_[kDepth]->output, &rh = part_[kHeight]->output, &rw = part_[kWidth]->output;
  const int64_t lanes = plan_.lanes, multiplier = plan_.problem.multiplier;
  for (int64_t b = 0; b < group_; ++b) {
    for (int64_t m = 0; m < multiplier; ++m) {
      const float* g_plane = g_planes_ + (b * multiplier + m) * plan_.g_plane;
      float* sums = sums_ + (block_ + b) * sums_of_block(plan_) + (m * (plan_.taps + 1) + plan_.taps) * lanes;
      for (int64_t od = rd.begin; od < rd.end; ++od) {
        for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
          plan_.table.sum_row(g_plane + g_offset(od, oh, rw.begin), rw.size(), sums);
        }
      }
    }
  }
}

void write_weight_gradients(const ConvProblem& problem, int64_t lanes, const DepthwiseBackwardTensors& tensors,
                            float* sums, int64_t parts) {
  const int64_t multiplier = problem.multiplier, taps = problem.kernel[0] * problem.kernel[1] * problem.kernel[2];
  const int64_t blocks = ceil_div(problem.channels, lanes), block_size = multiplier * (taps + 1) * lanes;
  constexpr int64_t kGrain = 32768;
  parallel_for(blocks, std::max<int64_t>(1, kGrain / (block_size * parts)), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* totals = sums + block * block_size;
      add_parts(totals, parts, blocks * block_size, block_size);
      const int64_t channel = block * lanes, valid = std::min(lanes, problem.channels - channel);
      for (int64_t i = 0; i < valid * multiplier; ++i) {
        const int64_t lane = i / multiplier, m = i % multiplier, inner = channel * multiplier + i;
        const float* source = totals + m * (taps + 1) * lanes + lane;
        for (int64_t tap = 0; tensors.weight_gradient != nullptr && tap < taps; ++tap) {
          store_element(tensors.weight_gradient, problem.element_type, inner * taps + tap, source[tap * lanes]);
        }
        if (tensors.bias_gradient == nullptr) continue;
        store_element(tensors.bias_gradient, problem.element_type, inner, source[taps * lanes]);
      }
    }
  });
}

}  // namespace dwsep
