// How the fast kernels run a spread: which of them writes which branch, and how the work is cut
// into blocks. Host code; the kernels get the finished ReduceLaunch by value.
//
// All of it follows from the parameters alone, never from the device: the parts of the weights'
// gradients are then the same everywhere, and so is the order of their sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.h"
#include "params.h"
#include "reduce_geometry.h"
#include "reduce_launch.h"

namespace msr {

namespace detail {

inline bool wanted(const SpreadParams& params, int b) {
  return b < params.num_branches && (params.branches[b].map.data || has_dots(params, b)) &&
         numel(params.branches[b].map) > 0;
}

inline bool wants_dots(const SpreadParams& params) {
  for (int b = 0; b < params.num_branches; ++b) {
    if (has_dots(params, b)) return true;
  }
  return false;
}

inline bool address_allows(const Map& map, int64_t vector) {
  const int64_t bytes = vector * element_size(map.dtype);
  return reinterpret_cast<uintptr_t>(map.data) % static_cast<uintptr_t>(bytes < 16 ? bytes : 16) ==
         0;
}

// Whether vectors of `vector` elements along `axis` start at addresses that are multiples of their
// size, wherever they lie in the map.
inline bool strides_allow(const Map& map, int axis, int64_t vector) {
  if (map.size[axis] > 1 && map.stride[axis] != 1) return false;
  for (int i = 0; i < kDims; ++i) {
    if (i != axis && map.size[i] > 1 && map.stride[i] % vector != 0) return false;
  }
  return address_allows(map, vector);
}

// Whether two branches can share one read of the gradient.
inline bool read_alike(const SpreadParams& params, int a, int b) {
  const Branch &x = params.branches[a], &y = params.branches[b];
  return x.channel_begin == y.channel_begin && x.map.size[1] == y.map.size[1] &&
         is_broadcast(params, a) == is_broadcast(params, b) && same_taps(x.axis[0], y.axis[0]);
}

// Whether two maps of the same sizes have the same strides where those matter.
inline bool same_strides(const Map& map, const int64_t (&a)[kDims], const int64_t (&b)[kDims]) {
  for (int i = 0; i < kDims; ++i) {
    if (map.size[i] > 1 && a[i] != b[i]) return false;
  }
  return true;
}

// Whether the forward values of a branch lie as its gradient does.
inline bool has_alike_input(const SpreadParams& params, int b) {
  const Map& map = params.branches[b].map;
  return same_strides(map, map.stride, params.input_stride[b]);
}

// Whether the addresses of a branch, and of its forward values if a dot product is wanted, allow
// vectors.
inline bool addresses_allow(const SpreadParams& params, int b, int64_t vector) {
  Map input = params.branches[b].map;
  input.data = has_dots(params, b) ? const_cast<void*>(params.inputs[b]) : nullptr;
  return address_allows(params.branches[b].map, vector) && address_allows(input, vector);
}

// The widest vectors of columns that both the gradient and the branch allow.
inline int32_t column_vector(const SpreadParams& params, int b, int32_t limit) {
  for (int32_t vector = limit; vector > 1; vector /= 2) {
    if (params.grad.size[4] % vector == 0 && strides_allow(params.grad, 4, vector) &&
        addresses_allow(params, b, vector))
      return vector;
  }
  return 1;
}

inline int32_t channel_vector(const SpreadParams& params, int b, int32_t limit) {
  const Branch& branch = params.branches[b];
  for (int32_t vector = limit; vector > 1; vector /= 2) {
    if (branch.map.size[1] % vector == 0 && branch.channel_begin % vector == 0 &&
        strides_allow(params.grad, 1, vector) && addresses_allow(params, b, vector))
      return vector;
  }
  return 1;
}

// The factor that reduce_aligned handles for this branch in vectors of `vector` columns, or 0.
inline int32_t aligned_factor(const Axis& columns, int32_t vector) {
  const int32_t factor = exact_factor(columns);
  const bool fits = factor == 2 || factor == 4 || factor == 8;
  return fits && factor <= vector && columns.out_size < kMaxExactColumns ? factor : 0;
}

// One launch's jobs, before their number of blocks and its shared memory are known.
inline ReduceLaunch& launch_for(SpreadPlan& plan, bool aligned, int32_t vector, int32_t group,
                                int32_t rows) {
  for (int i = 0; i < plan.num_launches; ++i) {
    ReduceLaunch& launch = plan.launches[i];
    if (launch.aligned == aligned && launch.vector == vector && launch.group == group)
      return launch;
  }
  ReduceLaunch& launch = plan.launches[plan.num_launches++];
  launch = {};
  launch.aligned = aligned;
  launch.vector = static_cast<int8_t>(vector);
  launch.group = static_cast<int8_t>(group);
  launch.rows = rows;
  return launch;
}

// A job before its size is known, with what decides which launch takes it.
struct Draft {
  ReduceJob job;
  bool aligned;
  int32_t vector;
};

// The widest vectors of at most this many elements that there are kernels for, outside
// reduce_aligned: 16 bytes, 4 bytes, or one element.
inline int32_t instance_vector(const SpreadParams& params, int32_t vector) {
  const bool is_float = params.grad.dtype == DType::kFloat32;
  if (vector >= (is_float ? 4 : 8)) return is_float ? 4 : 8;
  return !is_float && vector >= 2 ? 2 : 1;
}

inline Draft draft_for(const SpreadParams& params, const SpreadChoice& choice, int b,
                       bool identity) {
  Draft draft{};
  const auto widest = static_cast<int32_t>(16 / element_size(params.grad.dtype));
  const int32_t limit = std::min(choice.vector, widest);
  draft.job.first = static_cast<int8_t>(b);
  draft.job.over_batch = is_broadcast(params, b);
  if (choice.kernel == SpreadKernel::kChannelsLast) {
    draft.vector = channel_vector(params, b, limit);
    draft.vector = instance_vector(params, draft.vector);
  } else {
    draft.vector = column_vector(params, b, limit);
    draft.aligned = choice.aligned && draft.vector > 2 &&
                    (identity || aligned_factor(params.branches[b].axis[2], draft.vector) > 0);
    if (!draft.aligned) draft.vector = instance_vector(params, draft.vector);
  }
  if (identity) {
    draft.job.identities = static_cast<uint16_t>(1u << b);
  } else {
    draft.job.branches[draft.job.num_branches++] = static_cast<int8_t>(b);
  }
  return draft;
}

// Whether branch b can be written from the draft's read of the gradient.
inline bool joins(const SpreadParams& params, const SpreadChoice& choice, const Draft& draft, int b,
                  bool identity) {
  if (!read_alike(params, draft.job.first, b)) return false;
  const Draft own = draft_for(params, choice, b, identity);
  if (identity) {
    for (int other = 0; other < b; ++other) {
      const Map& map = params.branches[other].map;
      if ((draft.job.identities >> other & 1) != 0 &&
          !same_strides(map, map.stride, params.branches[b].map.stride))
        return false;
    }
    // Narrower vectors than a map allows are fine for it.
    return own.vector >= draft.vector;
  }
  return draft.aligned && own.aligned && own.vector == draft.vector &&
         draft.job.num_branches < choice.group;
}

// Sorts the wanted branches into jobs; returns how many.
inline int draft_jobs(const SpreadParams& params, const SpreadChoice& choice,
                      Draft (&drafts)[kMaxBranches]) {
  int count = 0;
  // Identity branches last, so that they find a job to ride on.
  for (const bool identities : {false, true}) {
    for (int b = 0; b < params.num_branches; ++b) {
      if (!wanted(params, b)) continue;
      const bool identity = is_identity(params.branches[b]) && !is_broadcast(params, b);
      if (identity != identities) continue;
      int i = 0;
      while (i < count && !joins(params, choice, drafts[i], b, identity)) ++i;
      if (i == count) {
        drafts[count++] = draft_for(params, choice, b, identity);
      } else if (identity) {
        drafts[i].job.identities |= static_cast<uint16_t>(1u << b);
      } else {
        drafts[i].job.branches[drafts[i].job.num_branches++] = static_cast<int8_t>(b);
      }
    }
  }
  return count;
}

// Destinations beyond a strip or tile that the job's branches read, at most, along a spatial axis.
inline int32_t job_halo(const SpreadParams& params, const ReduceJob& job, int axis) {
  int32_t halo = 0;
  for (int r = 0; r < job.num_branches; ++r)
    halo = std::max(halo, widest_halo(params.branches[job.branches[r]].axis[axis]));
  return halo;
}

// The planes of the gradient that feed one depth of the branch, at most.
inline int64_t outer_taps(const SpreadParams& params, const ReduceJob& job) {
  const Axis& axis = params.branches[job.first].axis[0];
  const int64_t images = job.over_batch ? params.grad.size[0] : 1;
  return std::max<int64_t>(images, 1) * (axis.rule == Rule::kIdentity ? 1 : 2 * longest_run(axis));
}

// Sets items, tiles and what else belongs to a strip. False where a tile would not hold the columns
// that one low-resolution column takes from.
inline bool cut_tiles(const SpreadParams& params, const SpreadChoice& choice, const Draft& draft,
                      int32_t block_threads, ReduceJob& job) {
  const Map& slice = params.branches[job.first].map;
  const int64_t width = params.grad.size[4];
  const int64_t vector = draft.vector;
  const int64_t planes = slice.size[0] * slice.size[1];
  if (choice.kernel == SpreadKernel::kChannelsLast) {
    job.items = slice.size[0] * slice.size[4] * (slice.size[1] / vector);
    job.tiles = ceil_div(job.items, block_threads);
    return true;
  }
  if (draft.aligned) {
    job.items = planes * (width / vector);
    job.tiles = ceil_div(job.items, block_threads);
    return true;
  }
  const int64_t each = reduce_planar_columns(params.grad.dtype, draft.vector);
  const int64_t threads = reduce_planar_threads(static_cast<int>(each));
  const int64_t vectors = ceil_div(width, each);
  job.items = planes;
  if (vectors <= threads) {
    job.threads_x = static_cast<int32_t>(vectors);
    job.column_tiles = 1;
    job.tile_columns = static_cast<int32_t>(width);
    job.tiles = ceil_div(planes, threads / vectors);
    return true;
  }
  const int64_t owned = (threads * each - job_halo(params, job, 2)) / each * each - each;
  if (owned < threads * each / 4) return false;
  job.threads_x = static_cast<int32_t>(threads);
  job.tile_columns = static_cast<int32_t>(owned);
  job.column_tiles = static_cast<int32_t>(ceil_div(width, owned));
  job.tiles = planes * job.column_tiles;
  return true;
}

// Sets what the kernels would otherwise find again for each element.
inline void find_shortcuts(const SpreadParams& params, ReduceJob& job) {
  job.vector_inputs = 0;
  job.identity_begin = job.identity_end = 0;
  for (int slot = 0; slot < job.slots(); ++slot) {
    const int b = job.branch_of(slot);
    if (params.branches[b].map.data && has_dots(params, b) && has_alike_input(params, b))
      job.vector_inputs = static_cast<uint16_t>(job.vector_inputs | 1u << b);
    if (slot < job.num_branches) continue;
    if (slot == job.num_branches) job.identity_begin = static_cast<int8_t>(b);
    job.identity_end = static_cast<int8_t>(b + 1);
  }
}

// Sets strips: high ones read few rows twice, low ones make enough blocks on small maps.
inline void cut_strips(const SpreadParams& params, const SpreadChoice& choice, ReduceJob& job) {
  const auto rows = static_cast<int32_t>(params.grad.size[3]);
  job.depths = params.branches[job.first].axis[0].in_size;
  int32_t factor = 1;  // a strip that ends where a source does has less to read beyond it
  for (int r = 0; r < job.num_branches; ++r)
    factor = std::max(factor, exact_factor(params.branches[job.branches[r]].axis[1]));
  int32_t strip_rows = choice.strip_rows;
  if (strip_rows == 0) {
    strip_rows = kMaxStripRows;
    const int32_t least = std::max(4, 2 * factor);
    const auto blocks = [&] { return job.tiles * job.depths * ceil_div(rows, strip_rows); };
    while (strip_rows / 2 >= least && blocks() < kWantedReduceBlocks) strip_rows /= 2;
    strip_rows = static_cast<int32_t>(ceil_div(strip_rows, factor)) * factor;
  }
  job.strip_rows = std::min(strip_rows, rows);
  job.strips = static_cast<int32_t>(ceil_div(rows, job.strip_rows));
}

// Columns of one branch that a block of reduce_planar owns, at most, and one more on either side.
inline int64_t run_begins(const SpreadParams& params, const ReduceJob& job) {
  if (job.num_branches == 0) return 0;
  const Axis& axis = params.branches[job.branches[0]].axis[2];
  int32_t most = 0;
  for (int32_t tile = 0; tile < job.column_tiles; ++tile) {
    const int32_t begin = tile * job.tile_columns;
    const int32_t end = std::min(begin + job.tile_columns, axis.out_size);
    most = std::max(most, first_owned_source(axis, end) - first_owned_source(axis, begin));
  }
  return most + 2;
}

// Places a launch's tables in shared memory. False where there is not enough.
inline bool place_shared(const SpreadParams& params, const SpreadChoice& choice,
                         ReduceLaunch& launch) {
  int64_t outer = 0, rows = 0, columns = 0, slots = 0;
  for (int i = 0; i < launch.num_jobs; ++i) {
    const ReduceJob& job = launch.jobs[i];
    outer = std::max(outer, outer_taps(params, job));
    const int64_t walked =
        std::min<int64_t>(params.grad.size[3], int64_t{job.strip_rows} + job_halo(params, job, 1)) +
        1;
    rows = std::max(rows, walked);
    slots = std::max<int64_t>(slots, job.slots());
    if (choice.kernel == SpreadKernel::kPlanar && !launch.aligned)
      columns = std::max(columns, run_begins(params, job) * int64_t{sizeof(int32_t)});
  }
  if (outer > kMaxOuterTaps) return false;
  int64_t buffers = 0;
  if (choice.kernel == SpreadKernel::kChannelsLast) {
    columns = params.grad.size[4] * 2 * int64_t{sizeof(float)};
  } else if (launch.aligned) {
    columns = int64_t{launch.group} * kAlignedClasses * kAlignedTaps * int64_t{sizeof(float)};
  } else {
    launch.columns = static_cast<int8_t>(reduce_planar_columns(params.grad.dtype, launch.vector));
    launch.threads = reduce_planar_threads(launch.columns);
    buffers = int64_t{2} * 2 * launch.threads * launch.columns * int64_t{sizeof(float)};
  }
  int64_t at = 0;
  const auto place = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += ceil_div(bytes, 16) * 16;
    return static_cast<int32_t>(begin);
  };
  place(kBlockWorkBytes);
  place(outer * int64_t{sizeof(OuterTap)});
  if (rows > kMaxSharedBytes) return false;  // before its bytes are cast to int32
  launch.row_capacity = static_cast<int32_t>(rows);
  launch.rows_at = place(launch.group * rows * int64_t{sizeof(RowTap)});
  if (at + columns > kMaxSharedBytes) return false;
  launch.columns_at = place(columns);
  launch.buffers_at = place(buffers);
  launch.dots_at = place(wants_dots(params) ? slots * launch.threads * int64_t{sizeof(double)} : 0);
  launch.shared_bytes = static_cast<int32_t>(at);
  return at <= kMaxSharedBytes;
}

// Orders the blocks of a launch. False where a grid cannot have so many.
inline bool order_blocks(ReduceLaunch& launch) {
  launch.regions = int64_t{launch.jobs[0].strips} * launch.jobs[0].depths;
  for (int i = 1; i < launch.num_jobs; ++i) {
    if (int64_t{launch.jobs[i].strips} * launch.jobs[i].depths != launch.regions)
      launch.regions = 1;
  }
  launch.blocks_per_region = 0;
  for (int i = 0; i < launch.num_jobs; ++i) {
    ReduceJob& job = launch.jobs[i];
    job.blocks_in_region = job.blocks() / launch.regions;
    job.block_begin = launch.blocks_per_region;
    launch.blocks_per_region += job.blocks_in_region;
    if (job.items > kMaxReduceBlocks || launch.blocks() > kMaxReduceBlocks) return false;
  }
  return true;
}

// Whether the dot product of an identity branch takes forward values that do not lie as its
// gradient does: kernels keep one offset for both.
inline bool has_dots_elsewhere(const SpreadParams& params, int b) {
  return has_dots(params, b) && is_identity(params.branches[b]) && !is_broadcast(params, b) &&
         !has_alike_input(params, b);
}

}  // namespace detail

// Whether the fast kernels take a call: they want one dtype, half, bfloat16 or float, and one
// layout for the gradient, its gate and every branch. The general kernel takes anything.
inline bool reduce_fits(const SpreadParams& params, SpreadKernel kernel) {
  if (kernel == SpreadKernel::kGeneral) return true;
  const bool channels_last = kernel == SpreadKernel::kChannelsLast;
  const int axis = channels_last ? 1 : 4;
  const Map& grad = params.grad;
  if (!is_plain(params)) return false;
  if (grad.dtype == DType::kFloat64 || !detail::strides_allow(grad, axis, 1)) return false;
  if (params.gate && grad.channels_last != channels_last) return false;
  for (int b = 0; b < params.num_branches; ++b) {
    if (!detail::wanted(params, b)) continue;
    const Map& map = params.branches[b].map;
    if (map.dtype != grad.dtype) return false;
    if (params.inputs[b] && params.input_dtype[b] != grad.dtype) return false;
    if (map.data && !detail::strides_allow(map, axis, 1)) return false;
    if (detail::has_dots_elsewhere(params, b)) return false;
  }
  return true;
}

namespace detail {

// Cuts the jobs for blocks of `threads` threads into launches; returns the number of their blocks,
// 0 where the kernels cannot do it.
inline int64_t cut_jobs(const SpreadParams& params, int32_t threads, Draft* drafts, int count,
                        SpreadPlan& plan) {
  int64_t blocks = 0;
  plan.num_launches = 0;
  for (int i = 0; i < count; ++i) {
    Draft& draft = drafts[i];
    if (!cut_tiles(params, plan.choice, draft, threads, draft.job)) return 0;
    cut_strips(params, plan.choice, draft.job);
    find_shortcuts(params, draft.job);
    blocks += draft.job.blocks();
    ReduceLaunch& launch =
        launch_for(plan, draft.aligned, draft.vector, draft.job.num_branches > 1 ? kMaxGroup : 1,
                   static_cast<int32_t>(params.grad.size[3]));
    launch.threads = threads;
    launch.jobs[launch.num_jobs++] = draft.job;
  }
  return blocks;
}

}  // namespace detail

// Decides everything about the launches of a choice but the general kernel. False where the chosen
// kernels cannot do it.
inline bool plan_reduce(const SpreadParams& params, SpreadPlan& plan) {
  detail::Draft drafts[kMaxBranches];
  const int count = detail::draft_jobs(params, plan.choice, drafts);
  // Small maps: smaller blocks, so that there are enough of them.
  int32_t threads = kReduceThreads;
  int64_t blocks = detail::cut_jobs(params, threads, drafts, count, plan);
  while (blocks > 0 && blocks < kWantedReduceBlocks && threads > kLeastReduceThreads) {
    threads /= 2;
    blocks = detail::cut_jobs(params, threads, drafts, count, plan);
  }
  if (count > 0 && blocks == 0) return false;
  for (int i = 0; i < plan.num_launches; ++i) {
    if (!detail::place_shared(params, plan.choice, plan.launches[i]) ||
        !detail::order_blocks(plan.launches[i]))
      return false;
  }
  return true;
}

}  // namespace msr
