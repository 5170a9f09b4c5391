// What EXPAND needs to know of a call beyond GatherParams, and how the call is cut into blocks and
// threads. Host code, without CUDA.
//
// A thread computes `vector` neighbours in memory (columns of a planar map, channels of a
// channels_last one) at each of a strip of positions along the axis that it walks (rows, or pixels
// of a row). The lines that are walked are the planes of a planar map, the rows of a channels_last
// one. A block has `tile` vectors side by side and several lines below each other, all with the
// same strip, so that one table of the walked axis, and one of the columns, serves them all.
#pragma once

#include <cstdint>

#include "launch.h"
#include "params.h"
#include "windows.h"

namespace msr {

// Rows (or pixels) that the kernels of windows keep: the taps that a window may have.
constexpr int kWindowRows = 4;

// Threads of a block, at most: two blocks on a multiprocessor leave a thread 128 registers, or 168
// where it keeps many rows, or fewer and something else.
constexpr int expand_threads(const GatherChoice& choice) {
  const int rows = (has_windows(choice.kernel) ? kWindowRows : 2) * choice.sources;
  return choice.vector * rows > (is_extended(choice.kernel) ? 8 : 32) ? 192 : 256;
}

// The instances of EXPAND for 2-byte elements, the first that fits is the best. Those of 4-byte
// elements are the same without vectors of 8: 16 bytes are the widest load.
constexpr GatherChoice kExpandVariants[] = {
    // Nearest, and maps that already have the size: any number of branches.
    {GatherKernel::kExpandPlanar, 8, 0, 0, 0},
    {GatherKernel::kExpandPlanar, 4, 0, 0, 0},
    {GatherKernel::kExpandPlanar, 2, 0, 0, 0},
    {GatherKernel::kExpandPlanar, 1, 0, 0, 0},
    {GatherKernel::kExpandChannelsLast, 8, 0, 0, 0},
    {GatherKernel::kExpandChannelsLast, 4, 0, 0, 0},
    {GatherKernel::kExpandChannelsLast, 1, 0, 0, 0},
    // One linear branch, the rest of the size of the result: every concatenation, and sums of two.
    {GatherKernel::kExpandPlanar, 8, 1, 0, 0},
    {GatherKernel::kExpandPlanar, 4, 1, 0, 0},
    {GatherKernel::kExpandPlanar, 2, 1, 0, 0},
    {GatherKernel::kExpandPlanar, 1, 1, 0, 0},
    {GatherKernel::kExpandChannelsLast, 8, 1, 0, 0},
    {GatherKernel::kExpandChannelsLast, 4, 1, 0, 0},
    {GatherKernel::kExpandChannelsLast, 1, 1, 0, 0},
    // Up to three, or four: fusion layers of HRNet, pyramid heads.
    {GatherKernel::kExpandPlanar, 8, 3, 0, 0},
    {GatherKernel::kExpandChannelsLast, 8, 3, 0, 0},
    {GatherKernel::kExpandPlanar, 4, 4, 0, 0},
    {GatherKernel::kExpandPlanar, 1, 4, 0, 0},
    {GatherKernel::kExpandChannelsLast, 4, 4, 0, 0},
    {GatherKernel::kExpandChannelsLast, 1, 4, 0, 0},
    // As many as there may be.
    {GatherKernel::kExpandPlanar, 1, 8, 0, 0},
    {GatherKernel::kExpandChannelsLast, 1, 8, 0, 0},
    // The same with all that a sum may have, in fewer widths.
    {GatherKernel::kExtendedPlanar, 8, 0, 0, 0},
    {GatherKernel::kExtendedPlanar, 4, 0, 0, 0},
    {GatherKernel::kExtendedPlanar, 2, 0, 0, 0},
    {GatherKernel::kExtendedPlanar, 1, 0, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 8, 0, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 4, 0, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 1, 0, 0, 0},
    {GatherKernel::kExtendedPlanar, 8, 1, 0, 0},
    {GatherKernel::kExtendedPlanar, 4, 1, 0, 0},
    {GatherKernel::kExtendedPlanar, 2, 1, 0, 0},
    {GatherKernel::kExtendedPlanar, 1, 1, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 8, 1, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 4, 1, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 1, 1, 0, 0},
    {GatherKernel::kExtendedPlanar, 4, 4, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 4, 4, 0, 0},
    {GatherKernel::kExtendedPlanar, 1, 8, 0, 0},
    {GatherKernel::kExtendedChannelsLast, 1, 8, 0, 0},
    // One branch of windows.
    {GatherKernel::kWindowsPlanar, 4, 1, 0, 0},
    {GatherKernel::kWindowsPlanar, 1, 1, 0, 0},
    {GatherKernel::kWindowsChannelsLast, 8, 1, 0, 0},
    {GatherKernel::kWindowsChannelsLast, 4, 1, 0, 0},
    {GatherKernel::kWindowsChannelsLast, 1, 1, 0, 0},
};
constexpr int kNumExpandVariants = sizeof(kExpandVariants) / sizeof(kExpandVariants[0]);

// How the bits of a mask come together to bytes. Where lines are whole bytes, neighbouring lanes
// shuffle theirs. Otherwise (rows whose width is no multiple of 8) a block keeps the bits of a turn
// in shared memory, and then writes those of each strip, or those of all its planes, one behind the
// other.
enum class MaskWay : int8_t { kLanes, kStrips, kPlanes };

// Branches that are summed up in one channel slice: all of a sum, one of a concatenation.
struct ExpandJob {
  int8_t bases[kMaxBranches];  // branches of the size of the result, in order
  int8_t num_bases;
  int8_t sources[kMaxBranches];  // branches to resample, in order; they are added after the bases
  int8_t num_sources;
  int8_t constants[kMaxBranches];  // added last; for plain kernels they are the last sources
  int8_t num_constants;
  MaskWay mask_way;
  int64_t channel_begin;
  uint32_t channels;
  uint32_t lines;
  uint32_t width;  // vectors in a line
  uint32_t tile, tiles;
  uint32_t lines_per_turn, turns;
  uint32_t steps, strips;
  uint32_t block_begin;  // its blocks: from here to the next job's
};

struct ExpandParams {
  GatherParams gather;
  ExpandJob jobs[kMaxBranches];
  int32_t num_jobs;
  uint32_t num_blocks;
  uint32_t threads;       // per block
  uint32_t shared_bytes;  // per block
};

// One step of a source along the walked axis. The kernel keeps the two rows (or pixels) between
// which the step lies: `first` and `second` are their coefficients, with the branch's weight.
// Before that it pushes `pushes` rows, the first of them row `load`: the second kept row becomes
// the first, and the new one the second.
struct alignas(16) WalkTap {
  float first;
  float second;
  int32_t load;
  int32_t pushes;  // 0, 1 or 2; negative where the last one is not a row, but nothing
};

// The same of a branch of single taps, of which the kernel keeps nothing: with all that a step
// needs to know of the branch, so that it need not look that up.
struct alignas(16) SingleTap {
  float coefficient;
  int32_t load;     // the row, or pixel
  uint32_t pitch;   // bytes from one to the next
  int32_t columns;  // planar: how many neighbouring ones have the same tap, where that is known
};
static_assert(sizeof(SingleTap) == sizeof(WalkTap), "a table has the same size with either");

// A column of a planar source: where its first tap lies in the row, and the second's weight.
struct ColumnTap {
  uint32_t offset;  // elements
  float fraction;   // 1/2 where there is one tap only: it is then read twice, which is exact
};

// The same of a branch of windows. The kernel keeps the four last rows that were pushed; the window
// of the step ends at the last one and has `count` of them, whose coefficients stand at the end of
// `weight`, without the branch's weight.
struct alignas(16) WalkWindow {
  float weight[kWindowRows];
  int32_t count;
  int32_t load;
  int32_t pushes;
};

// The window of a column, in two tables.
struct ColumnWindow {
  uint32_t offset;  // of its first tap, bytes
  int32_t count;
};
struct alignas(16) ColumnWeights {
  float at[kWindowRows];
};

// Whether the elements along `axis` can be read `vector` at a time.
inline bool has_vectors(const Map& map, int axis, int vector) {
  if (vector == 1) return true;
  const auto address = reinterpret_cast<uintptr_t>(map.data);
  if (address % (vector * element_size(map.dtype)) != 0) return false;
  for (int i = 0; i < kDims; ++i) {
    if (i == axis ? map.stride[i] != 1 : map.size[i] > 1 && map.stride[i] % vector != 0)
      return false;
  }
  return true;
}

// Whether 32-bit byte offsets reach across the innermost spatial axis, and from one step to the
// next along the others.
inline bool has_short_strides(const Map& map) {
  const int64_t limit = (int64_t{1} << 31) / element_size(map.dtype);
  for (int i = 2; i < kDims; ++i) {
    const int64_t steps = i == kDims - 1 ? map.size[i] : 1;
    if (map.size[i] > 1 && map.stride[i] >= limit / steps) return false;
  }
  return true;
}

inline bool is_linear(const Branch& branch) {
  return is_linear(branch.axis[0].rule) || is_linear(branch.axis[1].rule) ||
         is_linear(branch.axis[2].rule);
}

// Sets branches and channels of the jobs; returns how many there are, 0 if the branches neither all
// cover all channels nor lie side by side.
inline int make_expand_jobs(const GatherParams& params, const GatherChoice& choice,
                            ExpandJob (&jobs)[kMaxBranches]) {
  const int64_t all = params.out.size[1];
  int count = 0;
  int64_t end = 0;
  for (int b = 0; b < params.num_branches; ++b) {
    const Branch& branch = params.branches[b];
    const int64_t channels = branch.map.size[1];
    if (channels == 0) continue;
    const bool summed = count == 1 && channels == all && branch.channel_begin == 0;
    if (!summed) {
      if (branch.channel_begin != end || channels >= int64_t{1} << 31) return 0;
      end += channels;
      jobs[count].num_bases = jobs[count].num_sources = jobs[count].num_constants = 0;
      jobs[count].channel_begin = branch.channel_begin;
      jobs[count].channels = static_cast<uint32_t>(channels);
      ++count;
    }
    ExpandJob& job = jobs[count - 1];
    if (is_identity(branch)) {
      job.bases[job.num_bases++] = static_cast<int8_t>(b);
    } else if (is_constant(branch)) {
      job.constants[job.num_constants++] = static_cast<int8_t>(b);
    } else {
      job.sources[job.num_sources++] = static_cast<int8_t>(b);
    }
  }
  for (int j = 0; j < count && !is_extended(choice.kernel); ++j) {
    ExpandJob& job = jobs[j];
    for (int k = 0; k < job.num_constants; ++k) job.sources[job.num_sources++] = job.constants[k];
    job.num_constants = 0;
  }
  return end == all ? count : 0;
}

constexpr int64_t kWantedBlocks = 528;  // four for each multiprocessor of the largest GPUs
constexpr int64_t kMinBlocks = 264;     // what small maps are cut into, whatever it costs
constexpr int64_t kMaxTile = 128;       // keeps the column tables below 32 KB
constexpr int64_t kMinSteps = 4;        // fewer would spend more on the first rows than on the rest
constexpr int64_t kMaxSteps = 32;
constexpr int64_t kMaxTurns = 8;
constexpr int64_t kMaxExpandShared = 40 << 10;

inline int64_t clamp_between(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// How many pieces of `count` bits are whole bytes.
inline int64_t bytes_after(int64_t count) {
  return count % 8 == 0 ? 1 : count % 4 == 0 ? 2 : count % 2 == 0 ? 4 : 8;
}

// Cuts the call into blocks; depends on sizes alone. False if the grid would be too large, or a
// block would need too much.
inline bool plan_expand(const GatherParams& params, const GatherChoice& choice,
                        ExpandParams& plan) {
  const bool channels_last = is_channels_last(choice.kernel);
  const int64_t (&size)[kDims] = params.out.size;
  const int vector = choice.vector;
  const int64_t max_threads = expand_threads(choice);
  plan.gather = params;
  plan.num_jobs = make_expand_jobs(params, choice, plan.jobs);
  if (plan.num_jobs == 0) return false;
  constexpr int64_t limit = (int64_t{1} << 31) - 1;
  int64_t blocks = 0, threads = 0, shared_bytes = 0;
  for (int j = 0; j < plan.num_jobs; ++j) {
    ExpandJob& job = plan.jobs[j];
    const int64_t walk = channels_last ? size[4] : size[3];
    const int64_t width = (channels_last ? int64_t{job.channels} : size[4]) / vector;
    const int64_t rows = channels_last ? size[3] : int64_t{job.channels};
    if (size[0] > limit / rows || size[0] * rows > limit / size[2]) return false;
    const int64_t lines = size[0] * rows * size[2];

    MaskWay mask_way = MaskWay::kLanes;
    if (params.mask && !channels_last && size[4] % 8 != 0) {
      mask_way = size[3] * size[4] % 8 == 0 ? MaskWay::kStrips : MaskWay::kPlanes;
      // Only the planes of whole images follow each other.
      if (mask_way == MaskWay::kPlanes && job.channels != size[1]) return false;
    }
    const bool by_lanes = mask_way == MaskWay::kLanes;
    // Neighbouring lanes make up the bytes of a mask.
    const int64_t lanes = params.mask && by_lanes ? 8 / vector : 1;
    int64_t tiles = by_lanes ? ceil_div(width, kMaxTile) : 1;
    const int64_t tile = ceil_div(ceil_div(width, tiles), lanes) * lanes;
    tiles = ceil_div(width, tile);
    // So many rows, or planes, are whole bytes.
    const int64_t row_period = mask_way == MaskWay::kStrips ? bytes_after(size[4]) : 1;
    const int64_t line_period = mask_way == MaskWay::kPlanes ? bytes_after(size[3] * size[4]) : 1;
    if (tile * line_period > max_threads) return false;

    const double vectors = static_cast<double>(width) * lines * walk;
    int64_t steps = choice.steps;
    if (steps == 0) {
      const double wanted = vectors / (kWantedBlocks * max_threads);
      steps = wanted < kMaxSteps ? clamp_between(static_cast<int64_t>(wanted), kMinSteps, kMaxSteps)
                                 : kMaxSteps;
    }
    int64_t strips = 0, lines_per_turn = 0, groups = 0;
    // Small maps: smaller blocks, then shorter strips, so that each multiprocessor gets some.
    for (;; steps /= 2) {
      if (mask_way == MaskWay::kPlanes) steps = walk;
      strips = ceil_div(walk, steps);
      steps = ceil_div(ceil_div(walk, strips), row_period) * row_period;
      strips = ceil_div(walk, steps);
      for (int64_t target = max_threads; target >= 48; target /= 2) {
        lines_per_turn =
            clamp_between(target / tile / line_period, 1, ceil_div(lines, line_period));
        lines_per_turn *= line_period;
        groups = ceil_div(lines, lines_per_turn);
        if (static_cast<double>(groups) * tiles * strips >= kWantedBlocks) break;
      }
      const bool is_fixed = choice.steps != 0 || mask_way == MaskWay::kPlanes;
      const bool is_enough = static_cast<double>(groups) * tiles * strips >= kMinBlocks;
      if (is_fixed || is_enough || steps <= row_period) break;
    }
    int64_t turns = choice.turns;
    if (turns == 0) {
      const double rounds = static_cast<double>(groups) * tiles * strips / (4 * kWantedBlocks);
      turns = rounds < kMaxTurns ? clamp_between(static_cast<int64_t>(rounds), 1, kMaxTurns)
                                 : kMaxTurns;
    }
    groups = ceil_div(groups, turns);
    if (groups > limit / tiles || groups * tiles > (limit - blocks) / strips) return false;

    job.mask_way = mask_way;
    job.lines = static_cast<uint32_t>(lines);
    job.width = static_cast<uint32_t>(width);
    job.tile = static_cast<uint32_t>(tile);
    job.tiles = static_cast<uint32_t>(tiles);
    job.lines_per_turn = static_cast<uint32_t>(lines_per_turn);
    job.turns = static_cast<uint32_t>(turns);
    job.steps = static_cast<uint32_t>(steps);
    job.strips = static_cast<uint32_t>(strips);
    job.block_begin = static_cast<uint32_t>(blocks);
    blocks += groups * tiles * strips;
    int64_t column_bytes = choice.sources > 0 ? sizeof(ColumnTap) : sizeof(uint32_t);
    int64_t step_bytes = sizeof(WalkTap);
    if (has_windows(choice.kernel)) {
      column_bytes = sizeof(ColumnWindow) + sizeof(ColumnWeights);
      step_bytes = sizeof(WalkWindow);
    }
    int64_t needed =
        job.num_sources * (steps * step_bytes + (channels_last ? 0 : tile * vector * column_bytes));
    if (!by_lanes) needed += lines_per_turn * steps * tile;
    if (needed > kMaxExpandShared) return false;
    if (needed > shared_bytes) shared_bytes = needed;
    const int64_t used = ceil_div(tile * lines_per_turn, 32) * 32;
    if (used > threads) threads = used;
  }
  plan.num_blocks = static_cast<uint32_t>(blocks);
  plan.threads = static_cast<uint32_t>(threads);
  plan.shared_bytes = static_cast<uint32_t>(shared_bytes);
  return true;
}

// The element type of the maps that are added up, all but the constants.
inline DType dtype_of_maps(const GatherParams& params) {
  for (int b = 0; b < params.num_branches; ++b) {
    const Branch& branch = params.branches[b];
    if (branch.map.size[1] > 0 && !is_constant(branch)) return branch.map.dtype;
  }
  return params.out.dtype;
}

// Whether `vector` floats (or 16 bytes of them) can be read at once, at multiples of both strides.
inline bool has_float_vectors(const void* data, int64_t stride_n, int64_t stride_b, int vector) {
  const int64_t at_once = vector < 4 ? vector : 4;
  return reinterpret_cast<uintptr_t>(data) % (at_once * sizeof(float)) == 0 &&
         stride_n % at_once == 0 && stride_b % at_once == 0;
}

// Whether the extended kernels can read a constant: vectors of its channels, where those are
// innermost.
inline bool constant_fits(const Map& map, DType dtype, bool channels_last, int vector) {
  if (map.dtype != dtype && map.dtype != DType::kFloat32) return false;
  if (!channels_last || vector == 1) return true;
  const int64_t bytes = vector * element_size(map.dtype);
  const int64_t at_once = bytes < 16 ? vector : 16 / element_size(map.dtype);
  return map.stride[1] == 1 && (map.size[0] == 1 || map.stride[0] % at_once == 0) &&
         reinterpret_cast<uintptr_t>(map.data) % (at_once * element_size(map.dtype)) == 0;
}

// Whether the extended kernels can read factors, and the gradient that results are multiplied with.
inline bool extras_fit(const GatherParams& params, DType dtype, bool channels_last, int vector) {
  const Weights& weights = params.weights;
  const PixelWeights& pixels = params.pixel_weights;
  if (channels_last && weights.data && weights.stride_c != 0 &&
      !has_float_vectors(weights.data, weights.stride_n, weights.stride_b, vector)) {
    return false;
  }
  if (!channels_last && pixels.data &&
      !has_float_vectors(pixels.data, pixels.stride_n, pixels.stride_b, vector)) {
    return false;
  }
  if (!params.grad) return true;
  // Wider vectors would take the registers that slopes need.
  if (vector > 4 || (params.grad_dtype != dtype && params.grad_dtype != DType::kFloat32)) {
    return false;
  }
  Map grad = params.out;
  grad.data = const_cast<void*>(params.grad);
  grad.dtype = params.grad_dtype;
  for (int i = 0; i < kDims; ++i) grad.stride[i] = params.grad_stride[i];
  return has_vectors(grad, channels_last ? 1 : 4, vector) && has_short_strides(grad);
}

// Whether a resampled branch has no more taps than the kernels of a kind take.
inline bool taps_fit(const Branch& branch, const GatherChoice& choice) {
  for (const Axis& axis : branch.axis) {
    if (axis.transposed || axis.rule == Rule::kMaxPool) return false;
    if (is_windowed(axis.rule) &&
        (!has_windows(choice.kernel) || widest_window(axis) > kWindowRows)) {
      return false;
    }
  }
  if (has_windows(choice.kernel)) {
    // Windows lie in one plane; pools of planes have one of one element along depth.
    const Axis& depth = branch.axis[0];
    return depth.rule == Rule::kIdentity ||
           (depth.in_size == 1 && depth.out_size == 1 && depth.inverse == 1);
  }
  return choice.sources > 0 || !is_linear(branch);
}

// Whether an instance of EXPAND, of the layout of the result, computes a call.
inline bool expand_fits(const GatherParams& params, const GatherChoice& choice) {
  const bool channels_last = is_channels_last(choice.kernel);
  const int inner = channels_last ? 1 : 4;
  const int vector = choice.vector;
  // With a mask whole bytes of it: no two lines may share one, but in planes of extended kernels.
  const bool shares_bytes = is_extended(choice.kernel) && !channels_last;
  const int group = params.mask && vector < 8 && !shares_bytes ? 8 : vector;
  const Map& out = params.out;
  const DType dtype = is_extended(choice.kernel) ? dtype_of_maps(params) : out.dtype;
  if (out.dtype != dtype && out.dtype != DType::kFloat32) return false;
  if (dtype == DType::kFloat64 || vector * element_size(out.dtype) > 16) return false;
  if (out.size[inner] % group != 0) return false;
  if (!has_vectors(out, inner, vector) || !has_short_strides(out)) return false;
  if (is_extended(choice.kernel) && !extras_fit(params, dtype, channels_last, vector)) return false;
  ExpandJob jobs[kMaxBranches];
  const int num_jobs = make_expand_jobs(params, choice, jobs);
  for (int j = 0; j < num_jobs; ++j) {
    const ExpandJob& job = jobs[j];
    if (channels_last && (job.channels % group != 0 || job.channel_begin % group != 0)) {
      return false;
    }
    if (choice.sources > 0 && job.num_sources > choice.sources) return false;
    for (int k = 0; k < job.num_bases + job.num_sources; ++k) {
      const bool is_base = k < job.num_bases;
      const Branch& branch =
          params.branches[is_base ? job.bases[k] : job.sources[k - job.num_bases]];
      if (branch.map.dtype != dtype || !has_short_strides(branch.map)) return false;
      if ((is_base || channels_last) && !has_vectors(branch.map, inner, vector)) return false;
      if (!is_base && !taps_fit(branch, choice)) return false;
    }
    for (int k = 0; k < job.num_constants; ++k) {
      const Map& map = params.branches[job.constants[k]].map;
      if (!constant_fits(map, dtype, channels_last, vector)) return false;
    }
  }
  ExpandParams plan;
  return plan_expand(params, choice, plan);
}

}  // namespace msr
