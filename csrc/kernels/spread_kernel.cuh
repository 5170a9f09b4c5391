// The general spread kernel: the gradients of all branches of a gather from one map, by gathering.
// Any strides, rank, element types, taps and weights. One thread computes one element of one
// branch; where an element reads very much of the gradient, blocks have summed it up before. No
// atomics: each element is written once, its sum taken in a fixed order. It is the oracle of, and
// the fallback from, every faster path.
#pragma once

#include "block_sum.cuh"
#include "branch_taps.cuh"
#include "cuda_compat.h"
#include "launch.h"
#include "params.h"
#include "spread_blocks.h"

namespace msr {

// A thread's turns at a box of four axes, which is counted in the order of memory.
class BoxWalk {
 public:
  // first and step: of the counted elements, which are none if an axis is empty.
  __device__ BoxWalk(int64_t images, int32_t depths, int32_t rows, int32_t columns, uint32_t first,
                     uint32_t step)
      : images_(depths > 0 && rows > 0 && columns > 0 ? images : 0),
        size_{as_unsigned(depths), as_unsigned(rows), as_unsigned(columns)},
        step_(count(step)),
        here_(count(first)) {}

  struct Place {
    int64_t image;
    uint32_t depth, row, column;
  };

  __device__ bool inside() const { return here_.image < images_; }
  __device__ const Place& here() const { return here_; }

  __device__ void next() {
    const auto carried = [](uint32_t& digit, uint32_t size) -> uint32_t {
      if (digit < size) return 0;
      digit -= size;
      return 1;
    };
    here_.column += step_.column;
    here_.row += step_.row + carried(here_.column, size_[2]);
    here_.depth += step_.depth + carried(here_.row, size_[1]);
    here_.image += step_.image + carried(here_.depth, size_[0]);
  }

 private:
  __device__ static uint32_t as_unsigned(int32_t size) {
    return size > 0 ? static_cast<uint32_t>(size) : 1;
  }

  // The digits of a number, if those of the axes are below their sizes.
  __device__ Place count(uint32_t number) const {
    const auto take = [&number](uint32_t size) {
      const uint32_t digit = number % size;
      number /= size;
      return digit;
    };
    Place place;
    place.column = take(size_[2]);
    place.row = take(size_[1]);
    place.depth = take(size_[0]);
    place.image = number;
    return place;
  }

  const int64_t images_;
  const uint32_t size_[kSpatialDims];
  const Place step_;
  Place here_;
};

// One element of a branch, and what it reads of the gradient.
template <typename acc_t>
class SpreadElement {
 public:
  __device__ SpreadElement(const SpreadParams& params, const WindowTables& tables, int b,
                           const Position& p)
      : params_(params),
        branch_(params.branches[b]),
        b_(b),
        p_(p),
        depth_(taps(tables, 0)),
        rows_(taps(tables, 1)),
        columns_(taps(tables, 2)) {}

  // R^T(pixel weight * gate * grad), summed over images [begin, end).
  __device__ acc_t sum(int64_t begin, int64_t end) const {
    acc_t batch = 0;
    for (int64_t n = begin; n < end; ++n) {
      acc_t volume = 0;
      for (int32_t d = depth_.begin(); d < depth_.end(); ++d) {
        acc_t plane = 0;
        for (int32_t h = rows_.begin(); h < rows_.end(); ++h) {
          acc_t row = 0;
          for (int32_t w = columns_.begin(); w < columns_.end(); ++w)
            row += columns_[w] * read(n, d, h, w);
          plane += rows_[h] * row;
        }
        volume += depth_[d] * plane;
      }
      batch += volume;
    }
    return batch;
  }

  // This thread's share of the same, of threads that take turns. In double, because there may be
  // millions of terms.
  __device__ double share(int64_t begin, int64_t end, uint32_t thread, uint32_t threads) const {
    double sum = 0;
    for (BoxWalk walk(end - begin, depth_.end() - depth_.begin(), rows_.end() - rows_.begin(),
                      columns_.end() - columns_.begin(), thread, threads);
         walk.inside(); walk.next()) {
      const BoxWalk::Place& here = walk.here();
      const int32_t d = depth_.begin() + static_cast<int32_t>(here.depth);
      const int32_t h = rows_.begin() + static_cast<int32_t>(here.row);
      const int32_t w = columns_.begin() + static_cast<int32_t>(here.column);
      const acc_t value = read(begin + here.image, d, h, w);
      sum += static_cast<double>(depth_[d] * rows_[h] * columns_[w]) * static_cast<double>(value);
    }
    return sum;
  }

 private:
  __device__ AxisTaps<acc_t, true> taps(const WindowTables& tables, int axis) const {
    return {branch_.axis[axis], tables, tables.table[b_][axis], p_.at[axis]};
  }

  // Pixel weight * gate * grad at one pixel; 0 where a max-pooling took another element.
  __device__ acc_t read(int64_t n, int32_t d, int32_t h, int32_t w) const {
    const Map& grad = params_.grad;
    const Position pixel{n, p_.c + branch_.channel_begin, {d, h, w}};
    acc_t factor = pixel_weight_of<acc_t>(params_.pixel_weights, b_, grad, pixel);
    if (params_.gate &&
        !mask_bit(params_.gate + b_ * params_.gate_stride, offset_of(grad, n, pixel.c, d, h, w))) {
      // A factor of zero takes NaN away too.
      if (params_.gate_off == 0) return 0;
      factor *= static_cast<acc_t>(params_.gate_off);
    }
    if (is_max_pool(branch_) && !was_taken(n, pixel)) return 0;
    return factor * load<acc_t>(grad.data, grad.dtype, offset_in(grad.stride, pixel));
  }

  __device__ bool was_taken(int64_t n, const Position& pixel) const {
    const int64_t offset =
        index_offset(branch_, params_.grad, {n, p_.c, {pixel.at[0], pixel.at[1], pixel.at[2]}});
    const int32_t taken = params_.wide_index[b_]
                              ? static_cast<const int32_t*>(params_.index[b_])[offset]
                              : static_cast<const uint8_t*>(params_.index[b_])[offset];
    return taken == index_in_window(branch_, pixel.at, p_.at[0], p_.at[1], p_.at[2]);
  }

  const SpreadParams& params_;
  const Branch& branch_;
  const int b_;
  const Position p_;
  const AxisTaps<acc_t, true> depth_, rows_, columns_;
};

// A range of images.
struct Images {
  int64_t begin, end;
};

// The images of the gradient whose sum an element takes at once: the k-th where it sums them up one
// by one, all where it is broadcast over them, else its own.
MSR_HOST_DEVICE Images images_of(const SpreadParams& params, const SpreadBlocks& blocks, int b,
                                 const Position& p, int64_t k) {
  if (!is_broadcast(params, b)) return {p.n, p.n + 1};
  if ((blocks.by_image >> b & 1) != 0) return {k, k + 1};
  return {0, params.grad.size[0]};
}

// Where the i-th element of a group lies in the memory of its branch.
MSR_HOST_DEVICE int64_t offset_in_group(const Map& map, const Groups& groups, int64_t image,
                                        int64_t channel, int64_t i) {
  const int64_t plane = map.size[2] * map.size[3] * map.size[4];
  if (groups.channels == 1) return i + image * map.size[1] * plane;
  if (groups.images > 1) i += image * plane;
  if (map.channels_last) return i * map.size[1] + channel;
  const Divided at = divide(i, plane, 1.0 / static_cast<double>(plane));
  return (at.quotient * map.size[1] + channel) * plane + at.rest;
}

// A block for each sum that SpreadBlocks knows: all that an element reads, or a share of it.
template <typename acc_t>
__global__ void __launch_bounds__(kSpreadThreads, blocks_at_once<acc_t>())
    spread_sums_kernel(SpreadParams params, WindowTables tables, SpreadBlocks blocks) {
  __shared__ double parts[kSpreadThreads];
  int b = 0;
  while (static_cast<int64_t>(blockIdx.x) >= blocks.sum_begin[b + 1]) ++b;
  const int64_t images = images_apart(params, blocks, b);
  const int64_t rest = blockIdx.x - blocks.sum_begin[b];
  const auto summer = static_cast<uint32_t>(rest % blocks.summers[b]);
  const int64_t image = rest / blocks.summers[b] % images;
  const Position p = position_of(params.branches[b].map, rest / blocks.summers[b] / images);
  const Images n = images_of(params, blocks, b, p, image);
  const SpreadElement<acc_t> element(params, tables, b, p);
  const double sum = block_sum<kSpreadThreads>(
      parts, element.share(n.begin, n.end, summer * kSpreadThreads + threadIdx.x,
                           blocks.summers[b] * kSpreadThreads));
  if (threadIdx.x == 0) blocks.sums[blockIdx.x] = sum;
}

template <typename acc_t>
__global__ void __launch_bounds__(kSpreadThreads, blocks_at_once<acc_t>())
    spread_kernel(SpreadParams params, WindowTables tables, SpreadBlocks blocks) {
  __shared__ double parts[kSpreadThreads];
  int b = 0;
  while (static_cast<int64_t>(blockIdx.x) >= params.block_begin[b + 1]) ++b;
  const Branch& branch = params.branches[b];
  const Map& map = branch.map;
  const Groups groups = groups_of(params, b);
  const int64_t block = blockIdx.x - params.block_begin[b];
  const int64_t group = block / blocks.chunks[b];
  const int64_t image = group / groups.channels, channel = group % groups.channels;
  const int64_t total = numel(map) / (groups.images * groups.channels);
  const int64_t images = images_apart(params, blocks, b);
  const int32_t summers = blocks.summers[b];
  const bool dots = has_dots(params, b);
  double* const own_parts =
      dots ? params.partial_dots + params.part_begin[b] + block * images : nullptr;
  double dot = 0;
  // Whole blocks enter each turn together: block_sum needs all threads.
  for (int64_t first = (block % blocks.chunks[b]) * kSpreadThreads; first < total;
       first += blocks.chunks[b] * kSpreadThreads) {
    const bool active = first + threadIdx.x < total;
    const int64_t i = active ? first + threadIdx.x : first;
    const int64_t offset = offset_in_group(map, groups, image, channel, i);
    const Position p = position_of(map, offset);
    double input = 0;
    if (dots && active)
      input = load<double>(params.inputs[b], params.input_dtype[b],
                           offset_in(params.input_stride[b], p));
    acc_t value = 0;
    for (int64_t k = 0; k < images; ++k) {
      const Images n = images_of(params, blocks, b, p, k);
      acc_t unweighted = 0;
      if (summers > 0) {
        const double* const sums =
            blocks.sums + blocks.sum_begin[b] + (offset * images + k) * summers;
        double sum = 0;
        for (int32_t s = 0; s < summers; ++s) sum += sums[s];
        unweighted = static_cast<acc_t>(sum);
      } else if (active) {
        unweighted = SpreadElement<acc_t>(params, tables, b, p).sum(n.begin, n.end);
      }
      value +=
          weight_of<acc_t>(params.weights, b, n.begin, p.c + branch.channel_begin) * unweighted;
      const double product = active ? input * static_cast<double>(unweighted) : 0.0;
      if (dots && images > 1) {
        const double sum = block_sum<kSpreadThreads>(parts, product);
        if (threadIdx.x == 0) own_parts[k] = sum;
      } else {
        dot += product;
      }
    }
    if (active && map.data) store<acc_t>(map.data, map.dtype, offset, value);
  }
  if (!dots || images > 1) return;  // the same for every thread of the block
  dot = block_sum<kSpreadThreads>(parts, dot);
  if (threadIdx.x == 0) own_parts[0] = dot;
}

// The parts that one weight's gradient is the sum of: `runs` times `length` of them.
struct PartRuns {
  int64_t first, runs, run_step, length, step;
};

// image, channel: the weight's, 0 where all have the same one; the channel is the branch's own.
__device__ inline PartRuns parts_of(const SpreadParams& params, const SpreadBlocks& blocks, int b,
                                    int64_t image, int64_t channel) {
  const bool by_image = params.weights.stride_n != 0, by_channel = params.weights.stride_c != 0;
  const int64_t chunks = blocks.chunks[b], begin = params.part_begin[b];
  const int64_t part_channels = blocks.part_channels[b];
  if (part_channels > 0) {
    const int64_t first = (image * part_channels + channel) * chunks;
    return {begin + first, by_image ? 1 : blocks.part_images[b], part_channels * chunks,
            by_channel ? chunks : part_channels * chunks, 1};
  }
  const Groups groups = groups_of(params, b);
  const int64_t apart = images_apart(params, blocks, b);
  const int64_t group = (groups.images > 1 ? image : 0) * groups.channels + channel;
  return {begin + group * chunks * apart + (apart > 1 ? image : 0), 1, 0, chunks, apart};
}

// One block per weight sums up the parts of its gradient: a fixed tree, so two runs agree bit for
// bit. dots has the shape of the weights.
template <typename acc_t>
__global__ void __launch_bounds__(kSpreadThreads)
    sum_dots_kernel(SpreadParams params, SpreadBlocks blocks, acc_t* dots) {
  __shared__ double parts[kSpreadThreads];
  const Weights& weights = params.weights;
  // Weights are [images, branches, channels].
  const int64_t channels = weights.stride_c != 0 ? params.grad.size[1] : 1;
  const int64_t row = blockIdx.x / channels;
  const auto b = static_cast<int>(row % weights.count);
  // In a concatenation, the channels of other branches have no part in this one's.
  const int64_t channel =
      weights.stride_c != 0 ? blockIdx.x % channels - params.branches[b].channel_begin : 0;
  const bool has_parts = params.part_begin[b] < params.part_begin[b + 1] && channel >= 0 &&
                         channel < params.branches[b].map.size[1];
  const PartRuns runs = parts_of(params, blocks, b, row / weights.count, channel);
  double sum = 0;
  for (int64_t run = 0; has_parts && run < runs.runs; ++run) {
    const double* const first = params.partial_dots + runs.first + run * runs.run_step;
    for (int64_t i = threadIdx.x; i < runs.length; i += kSpreadThreads) sum += first[i * runs.step];
  }
  sum = block_sum<kSpreadThreads>(parts, sum);
  if (threadIdx.x == 0) dots[blockIdx.x] = static_cast<acc_t>(sum);
}

}  // namespace msr
