// How the fast kernels run a spread: which of them writes which branch, and how the work is cut
// into blocks. Host code; the kernels get the finished ReduceLaunch by value.
//
// All of it follows from the parameters alone, never from the device: the parts of the weights'
// gradients are then the same everywhere, and so is the order of their sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "launch.h"
#include "params.h"
#include "reduce_geometry.h"
#include "reduce_launch.h"
#include "windows.h"

namespace msr {

namespace detail {

inline bool wanted(const SpreadParams& params, int b) {
  return b < params.num_branches && (params.branches[b].map.data || has_dots(params, b)) &&
         numel(params.branches[b].map) > 0;
}

// Bit b: branch b is to be written.
inline uint16_t wanted_branches(const SpreadParams& params) {
  unsigned bits = 0;
  for (int b = 0; b < params.num_branches; ++b) bits |= wanted(params, b) ? 1u << b : 0;
  return static_cast<uint16_t>(bits);
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
  return params.gate_stride == 0 && x.channel_begin == y.channel_begin &&
         x.map.size[1] == y.map.size[1] && is_broadcast(params, a) == is_broadcast(params, b) &&
         same_taps(x.axis[0], y.axis[0]);
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

// Whether elements are multiplied with more than a bit each: factors of pixels, leaky gates.
// Kernels for windows know that.
inline bool has_factors(const SpreadParams& params) {
  return params.pixel_weights.data != nullptr || (params.gate && params.gate_off != 0);
}

// Whether `vector` floats at a time can be read of factors that lie `stride_n` and `stride_b`
// apart.
inline bool factors_allow(const void* data, int64_t stride_n, int64_t stride_b, int64_t vector) {
  const int64_t at_once = std::min<int64_t>(vector, 4);
  return !data || (reinterpret_cast<uintptr_t>(data) % (sizeof(float) * at_once) == 0 &&
                   stride_n % at_once == 0 && stride_b % at_once == 0);
}

// The widest vectors of columns that both the gradient and the branch allow.
inline int32_t column_vector(const SpreadParams& params, int b, int32_t limit) {
  const PixelWeights& pixels = params.pixel_weights;
  for (int32_t vector = limit; vector > 1; vector /= 2) {
    if (params.grad.size[4] % vector == 0 && strides_allow(params.grad, 4, vector) &&
        addresses_allow(params, b, vector) &&
        factors_allow(pixels.data, pixels.stride_n, pixels.stride_b, vector))
      return vector;
  }
  return 1;
}

inline int32_t channel_vector(const SpreadParams& params, int b, int32_t limit) {
  const Branch& branch = params.branches[b];
  const Weights& weights = params.weights;
  for (int32_t vector = limit; vector > 1; vector /= 2) {
    if (branch.map.size[1] % vector == 0 && branch.channel_begin % vector == 0 &&
        strides_allow(params.grad, 1, vector) && addresses_allow(params, b, vector) &&
        (weights.stride_c == 0 ||
         factors_allow(weights.data, weights.stride_n, weights.stride_b, vector)))
      return vector;
  }
  return 1;
}

inline bool has_window(const Branch& branch) {
  return is_windowed(branch.axis[1].rule) || is_windowed(branch.axis[2].rule);
}

// The factor that reduce_aligned handles for this branch in vectors of `vector` columns, or 0.
inline int32_t aligned_factor(const Branch& branch, int32_t vector) {
  const Axis& columns = branch.axis[2];
  const int32_t factor = has_window(branch) ? 0 : exact_factor(columns);
  const bool fits = factor == 2 || factor == 4 || factor == 8;
  return fits && factor <= vector && columns.out_size < kMaxExactColumns ? factor : 0;
}

// A job before its size is known, with what decides which launch takes it.
struct Draft {
  ReduceJob job;
  bool aligned;
  int32_t vector;
  int32_t tap_rows;
};

// The launch that takes a draft, before its number of blocks and its shared memory are known.
inline ReduceLaunch& launch_for(SpreadPlan& plan, const Draft& draft, int32_t rows) {
  const int32_t group = draft.job.num_branches > 1 ? kMaxGroup : 1;
  for (int i = 0; i < plan.num_launches; ++i) {
    ReduceLaunch& launch = plan.launches[i];
    if (launch.aligned == draft.aligned && launch.vector == draft.vector && launch.group == group &&
        launch.tap_rows == draft.tap_rows)
      return launch;
  }
  ReduceLaunch& launch = plan.launches[plan.num_launches++];
  launch = {};
  launch.aligned = draft.aligned;
  launch.vector = static_cast<int8_t>(draft.vector);
  launch.group = static_cast<int8_t>(group);
  launch.tap_rows = static_cast<int8_t>(draft.tap_rows);
  launch.rows = rows;
  return launch;
}

// The widest vectors of at most this many elements that there are kernels for, outside
// reduce_aligned: 16 bytes, or for windows of planar maps 4 elements; 4 bytes; or one element.
inline int32_t instance_vector(const SpreadParams& params, const SpreadChoice& choice,
                               int32_t vector, int32_t tap_rows) {
  const bool is_float = params.grad.dtype == DType::kFloat32;
  const bool is_window = tap_rows == kWindowTapRows;
  const bool is_narrow = is_float || (is_window && choice.kernel == SpreadKernel::kPlanar);
  if (vector >= (is_narrow ? 4 : 8)) return is_narrow ? 4 : 8;
  return !is_float && !is_window && vector >= 2 ? 2 : 1;
}

inline Draft draft_for(const SpreadParams& params, const SpreadChoice& choice, int b,
                       bool identity) {
  Draft draft{};
  const auto widest = static_cast<int32_t>(16 / element_size(params.grad.dtype));
  const int32_t limit = std::min(choice.vector, widest);
  const bool is_planar = choice.kernel == SpreadKernel::kPlanar;
  const bool has_rows = has_window(params.branches[b]) || has_factors(params);
  draft.tap_rows = has_rows ? kWindowTapRows : kTapRows;
  draft.job.first = static_cast<int8_t>(b);
  draft.job.over_batch = is_broadcast(params, b);
  draft.vector = is_planar ? column_vector(params, b, limit) : channel_vector(params, b, limit);
  draft.aligned = is_planar && choice.aligned && draft.vector > 2 && !has_rows &&
                  (identity || aligned_factor(params.branches[b], draft.vector) > 0);
  if (!draft.aligned) draft.vector = instance_vector(params, choice, draft.vector, draft.tap_rows);
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

// Sorts branches into jobs; returns how many. fitting: bit b is set for those that the chosen
// kernel can write.
inline int draft_jobs(const SpreadParams& params, const SpreadChoice& choice, uint16_t fitting,
                      Draft (&drafts)[kMaxBranches]) {
  int count = 0;
  // Identity branches last, so that they find a job to ride on.
  for (const bool identities : {false, true}) {
    for (int b = 0; b < params.num_branches; ++b) {
      if (!(fitting >> b & 1)) continue;
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
  const int64_t images = job.over_batch ? params.grad.size[0] : 1;
  return std::max<int64_t>(images, 1) * most_readers(params.branches[job.first].axis[0]);
}

// The same of a tile of columns, which begins where a column of an exactly larger branch does.
inline int32_t tile_halo(const SpreadParams& params, const ReduceJob& job) {
  if (job.num_branches == 0) return 0;
  const Axis& axis = params.branches[job.branches[0]].axis[2];
  const int32_t factor = exact_factor(axis);
  if (factor == 0) return job_halo(params, job, 2);
  return is_linear(axis.rule) ? factor : 0;
}

// Cuts the columns of the gradient into tiles for blocks that have `threads` threads along them,
// with `each` columns for a thread. False where a tile would not hold the columns that one
// low-resolution column takes from.
inline bool cut_columns(const SpreadParams& params, int64_t each, int64_t threads, ReduceJob& job) {
  const int64_t width = params.grad.size[4];
  const int64_t vectors = ceil_div(width, each);
  if (vectors <= threads) {
    job.threads_x = static_cast<int32_t>(vectors);
    job.column_tiles = 1;
    job.tile_columns = static_cast<int32_t>(width);
    return true;
  }
  int64_t factor = 0;
  if (job.num_branches > 0) factor = exact_factor(params.branches[job.branches[0]].axis[2]);
  const int64_t step = std::lcm(each, std::max<int64_t>(factor, 1));
  // The first thread may have columns before those that are read.
  const int64_t owned = (threads * each - tile_halo(params, job) - (each - 1)) / step * step;
  // The second source has the clamped columns of the first among its readers, with no weight: tiles
  // that begin there would have more to read than others.
  if (owned < threads * each / 4 || owned < 2 * factor) return false;
  job.threads_x = static_cast<int32_t>(threads);
  job.tile_columns = static_cast<int32_t>(owned);
  job.column_tiles = static_cast<int32_t>(ceil_div(width, owned));
  return true;
}

// How many threads of a block lie along the channels: few where tiles are to be wide.
inline bool cut_lanes(const SpreadParams& params, const Draft& draft, int32_t block_threads,
                      ReduceJob& job) {
  const Map& slice = params.branches[job.first].map;
  const int64_t width = params.grad.size[4];
  const int64_t vectors = slice.size[1] / draft.vector;
  const int32_t halo = tile_halo(params, job);
  // 128 bytes, or 64, or 32.
  int64_t wanted = halo <= 2 ? 8 : halo <= 8 ? 4 : 2;
  if (draft.vector == 1) wanted *= 4;
  wanted = std::max<int64_t>(wanted, block_threads / std::max<int64_t>(width, 1));
  for (; wanted > 0; wanted /= 2) {
    job.lane_tiles = static_cast<int32_t>(ceil_div(vectors, wanted));
    job.lanes = static_cast<int32_t>(ceil_div(vectors, job.lane_tiles));
    if (cut_columns(params, 1, block_threads / job.lanes, job)) return true;
  }
  return false;
}

// Sets items, tiles and what else belongs to a strip; false as above.
inline bool cut_tiles(const SpreadParams& params, const SpreadChoice& choice, const Draft& draft,
                      int32_t block_threads, ReduceJob& job) {
  const Map& slice = params.branches[job.first].map;
  const int64_t planes = slice.size[0] * slice.size[1];
  if (choice.kernel == SpreadKernel::kChannelsLast) {
    if (!cut_lanes(params, draft, block_threads, job)) return false;
    job.items = slice.size[0];
    job.tiles = slice.size[0] * job.lane_tiles * job.column_tiles;
    job.part_tiles = job.column_tiles * (params.weights.stride_c != 0 ? 1 : job.lane_tiles);
    return true;
  }
  if (draft.aligned) {
    const int64_t vectors = params.grad.size[4] / draft.vector;
    const Weights& weights = params.weights;
    const bool is_grouped = wants_dots(params) && !weights.per_branch();
    int64_t tile_items = block_threads, plane_items = vectors;
    job.part_tiles = 1;
    if (is_grouped && vectors <= block_threads) {  // blocks of whole planes
      tile_items = block_threads / vectors * vectors;
    } else if (is_grouped) {  // planes of whole blocks
      job.part_tiles = static_cast<int32_t>(ceil_div(vectors, block_threads));
      tile_items = ceil_div(vectors, job.part_tiles);
      plane_items = tile_items * job.part_tiles;
    }
    job.tile_items = static_cast<int32_t>(tile_items);
    job.plane_items = static_cast<int32_t>(plane_items);
    job.items = planes * plane_items;
    job.tiles = ceil_div(job.items, tile_items);
    return true;
  }
  const int32_t each = reduce_planar_columns(params.grad.dtype, draft.vector, draft.tap_rows);
  const int64_t threads = reduce_planar_threads(each, draft.tap_rows);
  if (!cut_columns(params, each, threads, job)) return false;
  job.items = planes;
  job.tiles = ceil_div(planes, threads / job.threads_x) * job.column_tiles;
  job.part_tiles = job.column_tiles;
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

// Columns of one branch that a block owns, at most; outside of reduce_aligned.
inline int64_t owned_columns(const SpreadParams& params, const ReduceJob& job) {
  if (job.num_branches == 0) return 0;
  const Axis& axis = params.branches[job.branches[0]].axis[2];
  int32_t most = 0;
  for (int32_t tile = 0; tile < job.column_tiles; ++tile) {
    const int32_t begin = tile * job.tile_columns;
    const int32_t end = std::min(begin + job.tile_columns, axis.out_size);
    most = std::max(most, first_owned(axis, end) - first_owned(axis, begin));
  }
  return most;
}

// What one block needs of shared memory, in bytes, and a launch of the largest of its jobs.
struct SharedNeeds {
  int64_t outer, rows, columns, column_weights, slots;
};

inline SharedNeeds needs_of(const SpreadParams& params, const ReduceLaunch& launch) {
  SharedNeeds needs{};
  for (int i = 0; i < launch.num_jobs; ++i) {
    const ReduceJob& job = launch.jobs[i];
    needs.outer = std::max(needs.outer, outer_taps(params, job));
    const int64_t walked =
        std::min<int64_t>(params.grad.size[3], int64_t{job.strip_rows} + job_halo(params, job, 1)) +
        1;
    needs.rows = std::max(needs.rows, walked);
    needs.slots = std::max<int64_t>(needs.slots, job.slots());
    if (launch.aligned || job.num_branches == 0) continue;
    needs.columns = std::max(needs.columns, owned_columns(params, job));
    const Axis& axis = params.branches[job.branches[0]].axis[2];
    needs.column_weights = std::max<int64_t>(needs.column_weights, most_readers(axis));
  }
  return needs;
}

// Places a launch's tables in shared memory. False where there is not enough.
inline bool place_shared(const SpreadParams& params, const SpreadChoice& choice,
                         ReduceLaunch& launch) {
  const bool channels_last = choice.kernel == SpreadKernel::kChannelsLast;
  const SharedNeeds needs = needs_of(params, launch);
  if (needs.outer > kMaxOuterTaps) return false;
  if (channels_last) {
    launch.columns = 1;
  } else if (!launch.aligned) {
    launch.columns = static_cast<int8_t>(
        reduce_planar_columns(params.grad.dtype, launch.vector, launch.tap_rows));
    launch.threads = reduce_planar_threads(launch.columns, launch.tap_rows);
  }
  constexpr auto kFloat = int64_t{sizeof(float)};
  int64_t columns = 0, weights = 0;
  int64_t buffers = int64_t{2} * launch.threads * launch.columns * kFloat;
  if (launch.aligned) {
    columns = int64_t{launch.group} * kAlignedClasses * kAlignedTaps * kFloat;
  } else if (!channels_last && launch.tap_rows == kTapRows) {
    columns = (needs.columns + 2) * kFloat;  // where runs begin
    buffers *= 2;                            // products with either weight
  } else {
    columns = needs.columns * int64_t{sizeof(ColumnSum)};
    weights = needs.columns * needs.column_weights * kFloat;
    if (channels_last) buffers *= launch.vector;
  }
  const bool has_windows = launch.tap_rows == kWindowTapRows;
  const auto row_bytes =
      static_cast<int64_t>(has_windows ? sizeof(RowTap<kWindowTapRows>) : sizeof(RowTap<kTapRows>));
  const bool by_channel = channels_last && params.weights.stride_c != 0;
  launch.dot_values = by_channel ? launch.vector : int8_t{1};
  const int64_t dots = needs.slots * launch.threads * launch.dot_values * int64_t{sizeof(double)};
  int64_t at = 0;
  const auto place = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += ceil_div(bytes, 16) * 16;
    return static_cast<int32_t>(begin);
  };
  // Before their bytes are cast to int32.
  if (needs.rows > kMaxSharedBytes || columns + weights > kMaxSharedBytes) return false;
  place(kBlockWorkBytes);
  place(needs.outer * int64_t{sizeof(OuterTap)});
  launch.row_capacity = static_cast<int32_t>(needs.rows);
  launch.rows_at = place(launch.group * needs.rows * row_bytes);
  launch.columns_at = place(columns);
  launch.column_weights = static_cast<int32_t>(needs.column_weights);
  launch.weights_at = place(weights);
  launch.buffers_at = place(buffers);
  launch.dots_at = place(wants_dots(params) ? dots : 0);
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

// Whether an axis of a branch has taps that the kernels know: along the depth two at most.
inline bool axis_fits(const Axis& axis, bool is_depth) {
  if (axis.transposed || axis.rule == Rule::kMaxPool) return false;
  if (!is_windowed(axis.rule)) return true;
  // Pools of planes have windows of one element along the depth.
  if (is_depth) return axis.in_size == 1 && axis.out_size == 1 && axis.inverse == 1;
  return widest_window(axis) <= kWindowTapRows;
}

// Whether the general kernel is the better one: blocks that sum up all of a plane.
inline bool is_summed_by_blocks(const SpreadParams& params, int b) {
  const int64_t (&size)[kDims] = params.grad.size;
  return is_constant(params.branches[b]) && size[2] * size[3] * size[4] >= kMostReadByThread;
}

// Whether the fast kernels know the factors of a branch.
inline bool factors_fit(const SpreadParams& params, int b) {
  // Kernels count them in 32 bits.
  const Weights& weights = params.weights;
  constexpr int64_t limit = int64_t{1} << 31;
  if (weights.stride_n >= limit / std::max<int64_t>(params.grad.size[0], 1)) return false;
  // Images with factors of their own cannot be summed up before.
  if (is_broadcast(params, b) &&
      (params.pixel_weights.has(b) || (params.weights.has(b) && params.weights.stride_n != 0)))
    return false;
  return !params.pixel_weights.has(b) || params.grad.size[2] == 1;
}

// Whether a fast kernel can write a branch: they want a gradient of half, bfloat16 or float, its
// type for every branch (those of float write any of the three), and one layout for all.
inline bool branch_fits(const SpreadParams& params, SpreadKernel kernel, int b) {
  if (!wanted(params, b)) return false;
  const bool channels_last = kernel == SpreadKernel::kChannelsLast;
  const int axis = channels_last ? 1 : 4;
  const Map& grad = params.grad;
  if (grad.dtype == DType::kFloat64 || !strides_allow(grad, axis, 1)) return false;
  if (params.gate && grad.channels_last != channels_last) return false;
  const Branch& branch = params.branches[b];
  const Map& map = branch.map;
  if (map.dtype != grad.dtype && (grad.dtype != DType::kFloat32 || map.dtype == DType::kFloat64))
    return false;
  if (params.inputs[b] && params.input_dtype[b] != map.dtype) return false;
  if (map.data && !strides_allow(map, axis, 1)) return false;
  if (has_dots_elsewhere(params, b)) return false;
  for (int i = 0; i < kSpatialDims; ++i) {
    if (!axis_fits(branch.axis[i], i == 0)) return false;
  }
  return factors_fit(params, b) && !is_summed_by_blocks(params, b);
}

// Bit b: the kernel can write branch b, in tiles that hold what one of its columns takes from.
inline uint16_t fitting_branches(const SpreadParams& params, const SpreadChoice& choice) {
  unsigned bits = 0;
  for (int b = 0; b < params.num_branches && choice.kernel != SpreadKernel::kGeneral; ++b) {
    if (!branch_fits(params, choice.kernel, b)) continue;
    const bool identity = is_identity(params.branches[b]) && !is_broadcast(params, b);
    Draft draft = draft_for(params, choice, b, identity);
    if (cut_tiles(params, choice, draft, kReduceThreads, draft.job)) bits |= 1u << b;
  }
  return static_cast<uint16_t>(bits);
}

// Cuts the jobs for blocks of `threads` threads into launches; returns the number of their blocks,
// 0 where a tile of so few threads would be too narrow.
inline int64_t cut_jobs(const SpreadParams& params, int32_t threads, Draft* drafts, int count,
                        SpreadPlan& plan) {
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    Draft& draft = drafts[i];
    if (!cut_tiles(params, plan.choice, draft, threads, draft.job)) return 0;
    cut_strips(params, plan.choice, draft.job);
    find_shortcuts(params, draft.job);
    blocks += draft.job.blocks();
    ReduceLaunch& launch = launch_for(plan, draft, static_cast<int32_t>(params.grad.size[3]));
    launch.threads = threads;
    launch.jobs[launch.num_jobs++] = draft.job;
  }
  return blocks;
}

// How the parts of the weights' gradients are told apart.
inline void name_parts(const SpreadParams& params, const SpreadChoice& choice,
                       ReduceLaunch& launch) {
  const Weights& weights = params.weights;
  const bool is_planar = choice.kernel == SpreadKernel::kPlanar;
  const bool is_grouped = !weights.per_branch();  // by plane: each thread of planar maps has one
  launch.part_images = is_grouped;
  launch.part_channels = is_planar ? is_grouped : weights.stride_c != 0;
}

inline bool finish_launches(const SpreadParams& params, SpreadPlan& plan) {
  for (int i = 0; i < plan.num_launches; ++i) {
    ReduceLaunch& launch = plan.launches[i];
    name_parts(params, plan.choice, launch);
    if (!place_shared(params, plan.choice, launch) || !order_blocks(launch)) return false;
  }
  return true;
}

}  // namespace detail

// Decides everything about the launches of a choice but the general kernel. Returns the branches
// that they write, a bit for each.
inline uint16_t plan_reduce(const SpreadParams& params, SpreadPlan& plan) {
  plan.num_launches = 0;
  const uint16_t fitting = detail::fitting_branches(params, plan.choice);
  if (fitting == 0) return 0;
  detail::Draft drafts[kMaxBranches];
  const int count = detail::draft_jobs(params, plan.choice, fitting, drafts);
  // Small maps: smaller blocks, so that there are enough of them. Many dot products: smaller ones,
  // so that shared memory holds them.
  bool found = false;
  for (int32_t threads = kReduceThreads; threads >= kLeastReduceThreads; threads /= 2) {
    SpreadPlan tried = plan;
    tried.num_launches = 0;
    const int64_t blocks = detail::cut_jobs(params, threads, drafts, count, tried);
    if (blocks > 0 && detail::finish_launches(params, tried)) {
      plan = tried;
      found = true;
      if (blocks >= kWantedReduceBlocks) break;
    } else if (found) {
      break;
    }
  }
  return found ? fitting : 0;
}

}  // namespace msr
