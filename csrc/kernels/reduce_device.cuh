// What the fast spread kernels have in common: which part a block does, the tables it works by,
// identity branches, and the weights' gradients.
#pragma once

#include "cuda_compat.h"
#include "reduce_geometry.h"
#include "reduce_launch.h"
#include "vector_io.cuh"

namespace msr {

// What a block does, found by one of its threads: a strip of rows of one input depth, and a tile of
// it. Kept in shared memory, at its beginning.
struct alignas(16) BlockWork {
  int32_t job;
  int32_t depth;   // of the branches
  uint32_t block;  // among those of the job
  uint32_t tile;
  Range rows;              // of the gradient, that the block walks
  Range strip;             // and those of them that its identity branches own
  Range depths;            // of the gradient
  int32_t num_outer;       // outer taps: depths, times images where the batch was broadcast
  Range owned[kMaxGroup];  // rows of the branches
  // reduce_planar: columns of the gradient and of the branch that the block owns, and the first
  // column that it reads.
  Range columns;
  Range owned_columns;
  int32_t first_column;
};
static_assert(sizeof(BlockWork) <= kBlockWorkBytes, "where the outer taps begin");

// Which job, strip and tile blockIdx.x stands for.
__device__ inline void find_block(const ReduceLaunch& launch, BlockWork& work) {
  const auto per_region = static_cast<uint32_t>(launch.blocks_per_region);
  const uint32_t region = blockIdx.x / per_region;
  const uint32_t rest = blockIdx.x % per_region;
  int32_t j = 0;
#pragma unroll 1
  while (j + 1 < launch.num_jobs && rest >= static_cast<uint32_t>(launch.jobs[j + 1].block_begin))
    ++j;
  const ReduceJob& job = launch.jobs[j];
  const uint32_t block = region * static_cast<uint32_t>(job.blocks_in_region) + rest -
                         static_cast<uint32_t>(job.block_begin);
  const auto tiles = static_cast<uint32_t>(job.tiles);
  const auto strips = static_cast<uint32_t>(job.strips);
  work.job = j;
  work.block = block;
  work.tile = block % tiles;
  work.depth = static_cast<int32_t>(block / tiles / strips);
  const auto rows = static_cast<int32_t>(launch.rows);
  work.strip.begin = static_cast<int32_t>(block / tiles % strips) * job.strip_rows;
  work.strip.end = min(work.strip.begin + job.strip_rows, rows);
}

// The rows that the branches of the block's strip need, and those that they own; none where no
// depth of the gradient feeds the block's own.
__device__ inline void find_rows(const SpreadParams& params, const ReduceJob& job,
                                 BlockWork& work) {
  work.depths = readers(params.branches[job.first].axis[0], work.depth);
  const int32_t images = job.over_batch ? static_cast<int32_t>(params.grad.size[0]) : 1;
  work.num_outer = (work.depths.end - work.depths.begin) * images;
  Range rows = job.identities ? work.strip : Range{work.strip.end, work.strip.begin};
#pragma unroll 1
  for (int r = 0; r < job.num_branches; ++r) {
    const Piece piece = piece_of(params.branches[job.branches[r]].axis[1], work.strip);
    work.owned[r] = piece.owned;
    if (piece.read.begin >= piece.read.end) continue;
    rows.begin = min(rows.begin, piece.read.begin);
    rows.end = max(rows.end, piece.read.end);
  }
  work.rows = rows.begin < rows.end && work.num_outer > 0 ? rows : Range{0, 0};
}

// The columns of a tile of reduce_planar, whose threads own `each` of them.
__device__ inline void find_columns(const SpreadParams& params, const ReduceJob& job, int each,
                                    BlockWork& work) {
  const Axis& axis = params.branches[job.first].axis[2];
  const auto tile = static_cast<int32_t>(work.tile % static_cast<uint32_t>(job.column_tiles));
  const int32_t begin = tile * job.tile_columns;
  work.columns = {begin, min(begin + job.tile_columns, axis.out_size)};
  const Piece piece = piece_of(axis, work.columns);
  work.owned_columns = piece.owned;
  const bool before = piece.read.begin < piece.read.end && piece.read.begin < begin;
  work.first_column = (before ? piece.read.begin : begin) / each * each;
}

// The planes (depths, and images where a batch was broadcast) that feed the block's input depth.
// Offsets are from the first one, which most blocks have alone; its own come from outer_origin.
__device__ inline void fill_outer_taps(const SpreadParams& params, const ReduceJob& job,
                                       const BlockWork& work, OuterTap* taps) {
  const Map& grad = params.grad;
  const Axis& axis = params.branches[job.first].axis[0];
  const int32_t owned = first_reading(axis, work.depth);
  const int32_t per_image = work.depths.end - work.depths.begin;
#pragma unroll 1
  for (auto i = static_cast<int32_t>(threadIdx.x); i < work.num_outer;
       i += static_cast<int32_t>(blockDim.x)) {
    const int32_t n = i / per_image;
    const int32_t d = work.depths.begin + i % per_image;
    const int64_t depths = d - work.depths.begin;
    taps[i] = {n * grad.stride[0] + depths * grad.stride[2], offset_of(grad, n, 0, depths, 0, 0),
               weight<float>(axis, d, work.depth), d >= owned ? d : -1};
  }
}

// Element (n, c, y, x) of the gradient in the first plane that feeds the block's depth: its
// address, and its bit in the gate. Where the batch was broadcast, that plane is of image 0.
template <typename T>
__device__ __forceinline__ const T* outer_origin(const SpreadParams& params, const ReduceJob& job,
                                                 const BlockWork& work, int64_t n, int64_t c,
                                                 int64_t y, int64_t x, int64_t& gate_bit) {
  const Map& grad = params.grad;
  if (job.over_batch) n = 0;
  c += params.branches[job.first].channel_begin;
  gate_bit = offset_of(grad, n, c, work.depths.begin, y, x);
  return static_cast<const T*>(grad.data) + offset_in(grad.stride, n, c, work.depths.begin, y, x);
}

// The taps of the rows that the block walks, one table for each branch. One row more completes all
// rows that the block owns.
__device__ inline void fill_row_taps(const SpreadParams& params, const ReduceJob& job,
                                     const BlockWork& work, int32_t capacity, RowTap* taps) {
  const int32_t count = work.rows.end - work.rows.begin;
#pragma unroll 1
  for (int r = 0; r < job.num_branches; ++r) {
    const Axis& axis = params.branches[job.branches[r]].axis[1];
#pragma unroll 1
    for (auto i = static_cast<int32_t>(threadIdx.x); i <= count;
         i += static_cast<int32_t>(blockDim.x)) {
      TapPair pair{work.owned[r].end, 0.0f, 0.0f};
      if (i < count) pair = tap_pair(axis, work.rows.begin + i);
      taps[r * capacity + i] = {pair.index, pair.first, pair.second, 0};
    }
  }
}

// Fills BlockWork, which may be read at once, and outer and row taps, for which a barrier must
// follow. Every thread of the block calls it.
__device__ inline void set_up_block(const SpreadParams& params, const ReduceLaunch& launch,
                                    unsigned char* shared) {
  auto& work = *reinterpret_cast<BlockWork*>(shared);
  if (threadIdx.x == 0) {
    find_block(launch, work);
    const ReduceJob& job = launch.jobs[work.job];
    find_rows(params, job, work);
    if (job.column_tiles > 0) find_columns(params, job, launch.columns, work);
  }
  __syncthreads();
  const ReduceJob& job = launch.jobs[work.job];
  fill_outer_taps(params, job, work, reinterpret_cast<OuterTap*>(shared + kBlockWorkBytes));
  fill_row_taps(params, job, work, launch.row_capacity,
                reinterpret_cast<RowTap*>(shared + launch.rows_at));
}

// The horizontal weights of a column of the gradient.
struct alignas(8) ColumnWeights {
  float first;
  float second;
};

// Those of columns [begin, end). A barrier must follow.
__device__ inline void fill_column_taps(const Axis& axis, int32_t begin, int32_t end,
                                        ColumnWeights* taps) {
#pragma unroll 1
  for (int32_t x = begin + static_cast<int32_t>(threadIdx.x); x < end;
       x += static_cast<int32_t>(blockDim.x)) {
    const TapPair pair = tap_pair(axis, x);
    taps[x - begin] = {pair.first, pair.second};
  }
}

// A branch's weight, one where there are none.
__device__ inline float branch_weight(const SpreadParams& params, int b) {
  return weight_of<float>(params.weights, b, 0, 0);
}

// The dot products of gradients and forward values, in double: one running sum per thread and
// branch, in shared memory because few launches want them.
class DotSums {
 public:
  __device__ DotSums(const SpreadParams& params, unsigned char* at)
      : params_(params), sums_(reinterpret_cast<double*>(at)) {}

  // The same for every thread of the grid.
  __device__ bool wanted() const { return params_.partial_dots != nullptr; }

  __device__ void clear(int slots) {
    if (!wanted()) return;
#pragma unroll 1
    for (int slot = 0; slot < slots; ++slot) sums_[slot * blockDim.x + threadIdx.x] = 0.0;
  }

  __device__ void add(int slot, double value) { sums_[slot * blockDim.x + threadIdx.x] += value; }

  // The sums over the block by a fixed tree, to partial_dots. All threads of the block call it.
  __device__ void finish(const ReduceJob& job, int64_t block) {
    if (!wanted()) return;
    __syncthreads();
    const int slots = job.slots();
#pragma unroll 1
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
#pragma unroll 1
        for (int slot = 0; slot < slots; ++slot) {
          double* const sums = sums_ + slot * blockDim.x;
          sums[threadIdx.x] += sums[threadIdx.x + half];
        }
      }
      __syncthreads();
    }
    if (threadIdx.x != 0) return;
#pragma unroll 1
    for (int slot = 0; slot < slots; ++slot)
      params_.partial_dots[params_.block_begin[job.branch_of(slot)] + block] =
          sums_[slot * blockDim.x];
  }

 private:
  const SpreadParams& params_;
  double* const sums_;
};

// The sum of values times forward values, which are neighbours along `axis`, `step` apart; in
// vectors where the plan found that they allow it. The first `count` of kElements.
template <typename T, int V, int kElements>
__device__ __forceinline__ float dot_product(const T* input, int64_t step, bool vectors,
                                             const float (&values)[kElements], int32_t count) {
  float sum = 0;
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kElements; i += V) {
      if (V != kElements && i >= count) continue;
      const Vector<T, V> raw = load_vector<T, V>(input + i);
#pragma unroll
      for (int k = 0; k < V; ++k) sum = fmaf(values[i + k], widen_element(raw, k), sum);
    }
    return sum;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (V == kElements || i < count) sum = fmaf(values[i], widen<float>(input[i * step]), sum);
  }
  return sum;
}

// The forward values that lie where an element of the gradient does, in a branch of vector_inputs.
template <typename T>
__device__ __forceinline__ const T* alike(const SpreadParams& params, int b, const T* element) {
  return static_cast<const T*>(params.inputs[b]) +
         (element - static_cast<const T*>(params.branches[b].map.data));
}

// Stores scaled values, the first `count` of kElements, in vectors of V.
template <typename T, int V, int kElements>
__device__ __forceinline__ void store_scaled(T* to, float scale, const float (&values)[kElements],
                                             int32_t count) {
#pragma unroll
  for (int i = 0; i < kElements; i += V) {
    float scaled[V];
#pragma unroll
    for (int k = 0; k < V; ++k) scaled[k] = scale * values[i + k];
    if (V == kElements || i < count) store_vector<T, V>(to + i, scaled);
  }
}

// Where a thread writes the identity branches of a job, which all have the same strides: counted in
// elements from the beginning of each, at the first of the depths that the block reads.
__device__ __forceinline__ int64_t identity_offset(const SpreadParams& params, const ReduceJob& job,
                                                   const BlockWork& work, int64_t n, int64_t c,
                                                   int32_t h, int32_t w) {
  if (job.identities == 0) return 0;
  const int64_t (&stride)[kDims] = params.branches[job.identity_begin].map.stride;
  return offset_in(stride, n, c, work.depths.begin, h, w);
}

// Writes gated elements to every identity branch, scaled, and adds to their dot products: the first
// `count` of kElements, in vectors of V.
template <typename T, int V, int kElements>
__device__ __forceinline__ void write_identities(const SpreadParams& params, const ReduceJob& job,
                                                 DotSums& dots, int64_t offset,
                                                 const float (&values)[kElements], int32_t count) {
  int slot = job.num_branches;
#pragma unroll 1
  for (int b = job.identity_begin; b < job.identity_end; ++b) {
    if (!(job.identities >> b & 1)) continue;
    T* const data = static_cast<T*>(params.branches[b].map.data);
    if (data) store_scaled<T, V>(data + offset, branch_weight(params, b), values, count);
    if (dots.wanted()) {
      const T* const input = static_cast<const T*>(params.inputs[b]) + offset;
      dots.add(slot, dot_product<T, V>(input, 1, true, values, count));
    }
    ++slot;
  }
}

}  // namespace msr
