// How the general spread kernel's blocks are shared out, and the parts of the weights' gradients of
// every spread: each kernel writes those of its branches, and one more kernel sums them up.
//
// Elements of a branch that share a weight whose gradient is wanted are a group: all of the branch,
// an image, a channel, or a channel of an image. Each block works for one group and writes the part
// of that weight's gradient that its elements give.
//
// Elements that read very much of the gradient (all of a channel, where a bias is a map of one
// pixel and one image) are summed up before, each by one block or by several.
//
// The fast kernels have parts of their own for each plane of a branch, or for each of its images,
// or for all of it: groups of a weight at most.
#pragma once

#include <cstdint>

#include "params.h"

namespace msr {

// From so many elements of the gradient on that an element reads, blocks sum it up.
constexpr int64_t kMostReadByThread = 256;

struct SpreadBlocks {
  // General kernel: blocks for one group. Its parts are ordered by group, then chunk, then image.
  // Fast kernels: parts for one plane (or image, or the branch), which are ordered by those.
  int64_t chunks[kMaxBranches];
  // Fast kernels: how many images and channels the parts of a branch tell apart. Else 0.
  int32_t part_images[kMaxBranches], part_channels[kMaxBranches];
  // Bit b: branch b is broadcast over images that have weights of their own, so its elements sum
  // the images up one by one, with a part for each.
  uint16_t by_image;
  // Blocks that sum up one element of branch b; 0: its threads do. What they leave: by element,
  // then image (if by_image), then block, from sum_begin[b] on.
  int32_t summers[kMaxBranches];
  int64_t sum_begin[kMaxBranches + 1];
  double* sums;
};

MSR_HOST_DEVICE bool is_broadcast(const SpreadParams& params, int b) {
  return params.branches[b].map.size[0] != params.grad.size[0];
}

// Whether the gradient of a branch's weights is wanted.
MSR_HOST_DEVICE bool has_dots(const SpreadParams& params, int b) {
  return params.inputs[b] && b < params.weights.count;
}

// The groups of a branch: images times channels.
struct Groups {
  int64_t images, channels;
};

MSR_HOST_DEVICE Groups groups_of(const SpreadParams& params, int b) {
  if (!has_dots(params, b)) return {1, 1};
  const bool per_image = params.weights.stride_n != 0 && !is_broadcast(params, b);
  return {per_image ? params.grad.size[0] : 1,
          params.weights.stride_c != 0 ? params.branches[b].map.size[1] : 1};
}

// Images that an element sums up one by one.
MSR_HOST_DEVICE int64_t images_apart(const SpreadParams& params, const SpreadBlocks& blocks,
                                     int b) {
  return (blocks.by_image >> b & 1) != 0 ? params.grad.size[0] : 1;
}

}  // namespace msr
