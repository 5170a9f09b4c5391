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

namespace msr {

// Threads of a block, at most: two blocks on a multiprocessor leave a thread 128 registers, or 168
// where it keeps many rows.
constexpr int expand_threads(int vector, int sources) { return vector * sources > 16 ? 192 : 256; }

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
};
constexpr int kNumExpandVariants = sizeof(kExpandVariants) / sizeof(kExpandVariants[0]);

// Branches that are summed up in one channel slice: all of a sum, one of a concatenation.
struct ExpandJob {
  int8_t bases[kMaxBranches];  // branches of the size of the result, in order
  int8_t num_bases;
  int8_t sources[kMaxBranches];  // branches to resample, in order; they are added after the bases
  int8_t num_sources;
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

// A column of a planar source: where its first tap lies in the row, and the second's weight.
struct ColumnTap {
  uint32_t offset;  // bytes
  float fraction;   // 1/2 where there is one tap only: it is then read twice, which is exact
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

// Sets bases, sources and channels of the jobs; returns how many there are, 0 if the branches
// neither all cover all channels nor lie side by side.
inline int make_expand_jobs(const GatherParams& params, ExpandJob (&jobs)[kMaxBranches]) {
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
      jobs[count].num_bases = jobs[count].num_sources = 0;
      jobs[count].channel_begin = branch.channel_begin;
      jobs[count].channels = static_cast<uint32_t>(channels);
      ++count;
    }
    ExpandJob& job = jobs[count - 1];
    if (is_identity(branch)) {
      job.bases[job.num_bases++] = static_cast<int8_t>(b);
    } else {
      job.sources[job.num_sources++] = static_cast<int8_t>(b);
    }
  }
  return end == all ? count : 0;
}

constexpr int64_t kWantedBlocks = 528;  // four for each multiprocessor of the largest GPUs
constexpr int64_t kMaxTile = 128;       // keeps the column tables below 32 KB
constexpr int64_t kMinSteps = 4;        // fewer would spend more on the first rows than on the rest
constexpr int64_t kMaxSteps = 32;
constexpr int64_t kMaxTurns = 8;

inline int64_t clamp_between(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Cuts the call into blocks; depends on sizes alone. False if the grid would be too large.
inline bool plan_expand(const GatherParams& params, const GatherChoice& choice,
                        ExpandParams& plan) {
  const bool channels_last = choice.kernel == GatherKernel::kExpandChannelsLast;
  const int64_t (&size)[kDims] = params.out.size;
  const int vector = choice.vector;
  const int64_t max_threads = expand_threads(vector, choice.sources);
  plan.gather = params;
  plan.num_jobs = make_expand_jobs(params, plan.jobs);
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

    // Neighbouring lanes make up the bytes of a mask.
    const int64_t lanes = params.mask ? 8 / vector : 1;
    int64_t tiles = ceil_div(width, kMaxTile);
    const int64_t tile = ceil_div(ceil_div(width, tiles), lanes) * lanes;
    tiles = ceil_div(width, tile);

    const double vectors = static_cast<double>(width) * lines * walk;
    int64_t steps = choice.steps;
    if (steps == 0) {
      const double wanted = vectors / (kWantedBlocks * max_threads);
      steps = wanted < kMaxSteps ? clamp_between(static_cast<int64_t>(wanted), kMinSteps, kMaxSteps)
                                 : kMaxSteps;
    }
    int64_t strips = ceil_div(walk, steps);
    steps = ceil_div(walk, strips);
    strips = ceil_div(walk, steps);

    // Small maps: smaller blocks, so that more multiprocessors get one.
    int64_t lines_per_turn = 0, groups = 0;
    for (int64_t target = max_threads; target >= 48; target /= 2) {
      lines_per_turn = clamp_between(target / tile, 1, lines);
      groups = ceil_div(lines, lines_per_turn);
      if (static_cast<double>(groups) * tiles * strips >= kWantedBlocks) break;
    }
    int64_t turns = choice.turns;
    if (turns == 0) {
      const double rounds = static_cast<double>(groups) * tiles * strips / (4 * kWantedBlocks);
      turns = rounds < kMaxTurns ? clamp_between(static_cast<int64_t>(rounds), 1, kMaxTurns)
                                 : kMaxTurns;
    }
    groups = ceil_div(groups, turns);
    if (groups > limit / tiles || groups * tiles > (limit - blocks) / strips) return false;

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
    const int64_t column_bytes = choice.sources > 0 ? sizeof(ColumnTap) : sizeof(uint32_t);
    const int64_t needed = job.num_sources * (steps * int64_t{sizeof(WalkTap)} +
                                              (channels_last ? 0 : tile * vector * column_bytes));
    if (needed > shared_bytes) shared_bytes = needed;
    const int64_t used = ceil_div(tile * lines_per_turn, 32) * 32;
    if (used > threads) threads = used;
  }
  plan.num_blocks = static_cast<uint32_t>(blocks);
  plan.threads = static_cast<uint32_t>(threads);
  plan.shared_bytes = static_cast<uint32_t>(shared_bytes);
  return true;
}

// Whether an instance of EXPAND, of the layout of the result, computes a call.
inline bool expand_fits(const GatherParams& params, const GatherChoice& choice) {
  const bool channels_last = choice.kernel == GatherKernel::kExpandChannelsLast;
  const int inner = channels_last ? 1 : 4;
  const int vector = choice.vector;
  // With a mask whole bytes of it: no two lines may share one.
  const int group = params.mask && vector < 8 ? 8 : vector;
  const Map& out = params.out;
  if (out.dtype == DType::kFloat64 || vector * element_size(out.dtype) > 16) return false;
  if (out.size[inner] % group != 0) return false;
  if (!has_vectors(out, inner, vector) || !has_short_strides(out)) return false;
  ExpandJob jobs[kMaxBranches];
  const int num_jobs = make_expand_jobs(params, jobs);
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
      if (branch.map.dtype != out.dtype || !has_short_strides(branch.map)) return false;
      if ((is_base || channels_last) && !has_vectors(branch.map, inner, vector)) return false;
      if (choice.sources == 0 && is_linear(branch)) return false;
    }
  }
  ExpandParams plan;
  return plan_expand(params, choice, plan);
}

}  // namespace msr
