// What the fast spread kernels have in common: which part a block does, the tables it works by,
// identity branches, and the weights' gradients.
#pragma once

#include <type_traits>

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
  // All but reduce_aligned: columns of the gradient and of the branch that the block owns, and the
  // first column that it reads.
  Range columns;
  Range owned_columns;
  int32_t first_column;
};
static_assert(sizeof(BlockWork) <= kBlockWorkBytes, "where the outer taps begin");

// The same number, of which compilers do not know that it stays the same: what is read with it as
// an index is read again each time, instead of held in registers. For what happens rarely.
__device__ __forceinline__ int read_again(int index) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(index));
#endif
  return index;
}

// ---- taps ---------------------------------------------------------------------------------------

// What kernels have that know no windows, instead of the tables of the call.
struct NoTables {};
template <int kRows>
using TablesFor = std::conditional_t<kRows == kTapRows, NoTables, WindowTables>;

// The table of an axis, or null where its taps are evaluated.
__device__ __forceinline__ const WindowTable* table_of(const WindowTables& tables, int b, int i) {
  return tables.table[b][i].width > 0 ? &tables.table[b][i] : nullptr;
}

// reduce_geometry.h's, along axis i of branch b, from its table if it has one.
template <typename Tables>
__device__ __forceinline__ Range readers_of(const SpreadParams& params, const Tables& tables, int b,
                                            int i, int32_t s) {
  const Axis& axis = params.branches[b].axis[i];
  if constexpr (std::is_same_v<Tables, WindowTables>) {
    if (const WindowTable* table = table_of(tables, b, i)) return tables.readers(*table, axis)[s];
  }
  return readers(axis, s);
}

// first_owned.
template <typename Tables>
__device__ __forceinline__ int32_t first_owned_of(const SpreadParams& params, const Tables& tables,
                                                  int b, int i, int32_t d) {
  const Axis& axis = params.branches[b].axis[i];
  if constexpr (std::is_same_v<Tables, WindowTables>) {
    const WindowTable* table = table_of(tables, b, i);
    if (table && d > 0 && d < axis.out_size) {
      const Range window = tables.windows(*table)[d];
      return window.begin + (window.end - window.begin) / 2;
    }
  }
  return first_owned_source(axis, d);
}

// The sources that a piece of destinations owns, and the destinations that it must read for them.
struct Piece {
  Range owned;
  Range read;
};

template <typename Tables>
__device__ inline Piece piece_of(const SpreadParams& params, const Tables& tables, int b, int i,
                                 Range destinations) {
  Piece piece{{first_owned_of(params, tables, b, i, destinations.begin),
               first_owned_of(params, tables, b, i, destinations.end)},
              {0, 0}};
  if (piece.owned.begin < piece.owned.end) {
    piece.read = {readers_of(params, tables, b, i, piece.owned.begin).begin,
                  readers_of(params, tables, b, i, piece.owned.end - 1).end};
  }
  return piece;
}

// The weight with which destination d reads source s.
template <typename Tables>
__device__ __forceinline__ float weight_along(const SpreadParams& params, const Tables& tables,
                                              int b, int i, int32_t d, int32_t s) {
  const Axis& axis = params.branches[b].axis[i];
  if constexpr (std::is_same_v<Tables, WindowTables>) {
    if (const WindowTable* table = table_of(tables, b, i)) {
      const int32_t first = tables.windows(*table)[d].begin;
      return tables.template weights<float>(*table, axis)[int64_t{d} * table->width + s - first];
    }
  }
  return tap_weight(axis, d, s);
}

// Row d of the gradient.
template <int kRows>
__device__ __forceinline__ RowTap<kRows> row_tap(const SpreadParams& params,
                                                 const TablesFor<kRows>& tables, int b, int32_t d) {
  const Axis& axis = params.branches[b].axis[1];
  RowTap<kRows> tap{};
  if constexpr (kRows == kWindowTapRows) {
    if (const WindowTable* table = table_of(tables, b, 1)) {
      const Range window = tables.windows(*table)[d];
      const float* const weights =
          tables.template weights<float>(*table, axis) + int64_t{d} * table->width;
      tap.index = window.begin;
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        tap.weight[k] = window.begin + k < window.end ? weights[k] : 0.0f;
      return tap;
    }
  }
  const TapPair pair = tap_pair(axis, d);
  tap.index = pair.index;
  tap.weight[0] = pair.first;
  tap.weight[1] = pair.second;
  return tap;
}

// ---- blocks -------------------------------------------------------------------------------------

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
template <typename Tables>
__device__ inline void find_rows(const SpreadParams& params, const Tables& tables,
                                 const ReduceJob& job, BlockWork& work) {
  work.depths = readers(params.branches[job.first].axis[0], work.depth);
  const int32_t images = job.over_batch ? static_cast<int32_t>(params.grad.size[0]) : 1;
  work.num_outer = (work.depths.end - work.depths.begin) * images;
  Range rows = job.identities ? work.strip : Range{work.strip.end, work.strip.begin};
#pragma unroll 1
  for (int r = 0; r < job.num_branches; ++r) {
    const Piece piece = piece_of(params, tables, job.branches[r], 1, work.strip);
    work.owned[r] = piece.owned;
    if (piece.read.begin >= piece.read.end) continue;
    rows.begin = min(rows.begin, piece.read.begin);
    rows.end = max(rows.end, piece.read.end);
  }
  work.rows = rows.begin < rows.end && work.num_outer > 0 ? rows : Range{0, 0};
}

// The columns of a tile, whose threads own `each` of them.
template <typename Tables>
__device__ inline void find_columns(const SpreadParams& params, const Tables& tables,
                                    const ReduceJob& job, int each, BlockWork& work) {
  const Axis& axis = params.branches[job.first].axis[2];
  const auto tile = static_cast<int32_t>(work.tile % static_cast<uint32_t>(job.column_tiles));
  const int32_t begin = tile * job.tile_columns;
  work.columns = {begin, min(begin + job.tile_columns, axis.out_size)};
  const Piece piece = piece_of(params, tables, job.first, 2, work.columns);
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
  // Of a maximum, each branch has its own gate.
  gate_bit =
      offset_of(grad, n, c, work.depths.begin, y, x) + 8 * params.gate_stride * int64_t{job.first};
  return static_cast<const T*>(grad.data) + offset_in(grad.stride, n, c, work.depths.begin, y, x);
}

// The taps of the rows that the block walks, one table for each branch. One row more completes all
// rows that the block owns.
template <int kRows>
__device__ inline void fill_row_taps(const SpreadParams& params, const TablesFor<kRows>& tables,
                                     const ReduceJob& job, const BlockWork& work, int32_t capacity,
                                     RowTap<kRows>* taps) {
  const int32_t count = work.rows.end - work.rows.begin;
#pragma unroll 1
  for (int r = 0; r < job.num_branches; ++r) {
#pragma unroll 1
    for (auto i = static_cast<int32_t>(threadIdx.x); i <= count;
         i += static_cast<int32_t>(blockDim.x)) {
      RowTap<kRows> tap{};
      tap.index = work.owned[r].end;
      if (i < count) tap = row_tap<kRows>(params, tables, job.branches[r], work.rows.begin + i);
      taps[r * capacity + i] = tap;
    }
  }
}

// Fills BlockWork, which may be read at once, and outer and row taps, for which a barrier must
// follow. Every thread of the block calls it.
template <int kRows>
__device__ inline void set_up_block(const SpreadParams& params, const ReduceLaunch& launch,
                                    const TablesFor<kRows>& tables, unsigned char* shared) {
  auto& work = *reinterpret_cast<BlockWork*>(shared);
  if (threadIdx.x == 0) {
    find_block(launch, work);
    const ReduceJob& job = launch.jobs[work.job];
    find_rows(params, tables, job, work);
    if (job.column_tiles > 0) find_columns(params, tables, job, launch.columns, work);
  }
  __syncthreads();
  const ReduceJob& job = launch.jobs[work.job];
  fill_outer_taps(params, job, work, reinterpret_cast<OuterTap*>(shared + kBlockWorkBytes));
  fill_row_taps<kRows>(params, tables, job, work, launch.row_capacity,
                       reinterpret_cast<RowTap<kRows>*>(shared + launch.rows_at));
}

// What each column of a branch that the block owns sums up, and the weights of that, `width` for
// each. A barrier must follow.
template <typename Tables>
__device__ inline void fill_column_sums(const SpreadParams& params, const Tables& tables,
                                        const ReduceJob& job, const BlockWork& work, int32_t width,
                                        ColumnSum* sums, float* weights) {
  const Range owned = work.owned_columns;
  const int32_t last = owned.end - owned.begin;
#pragma unroll 1
  for (auto j = static_cast<int32_t>(threadIdx.x); j < last;
       j += static_cast<int32_t>(blockDim.x)) {
    const Range reads = readers_of(params, tables, job.first, 2, owned.begin + j);
    sums[j] = {reads.begin - work.first_column, reads.end - reads.begin};
#pragma unroll 1
    for (int32_t x = reads.begin; x < reads.end; ++x)
      weights[j * width + x - reads.begin] =
          weight_along(params, tables, job.first, 2, x, owned.begin + j);
  }
}

// The horizontal weights of a column of the gradient.
struct alignas(8) ColumnTaps {
  float first;
  float second;
};

// Those of columns [begin, end). A barrier must follow.
__device__ inline void fill_column_taps(const Axis& axis, int32_t begin, int32_t end,
                                        ColumnTaps* taps) {
#pragma unroll 1
  for (int32_t x = begin + static_cast<int32_t>(threadIdx.x); x < end;
       x += static_cast<int32_t>(blockDim.x)) {
    const TapPair pair = tap_pair(axis, x);
    taps[x - begin] = {pair.first, pair.second};
  }
}

// ---- factors ------------------------------------------------------------------------------------

// Where the weights of an image and channel (of the gradient) are, those of all branches: in
// elements. The plan leaves larger ones to the general kernel.
__device__ __forceinline__ uint32_t offset_of_weights(const SpreadParams& params, uint32_t n,
                                                      int64_t c) {
  const Weights& weights = params.weights;
  return n * static_cast<uint32_t>(weights.stride_n) +
         static_cast<uint32_t>(c) * static_cast<uint32_t>(weights.stride_c);
}
__device__ __forceinline__ const float* weights_at(const SpreadParams& params, uint32_t offset) {
  return static_cast<const float*>(params.weights.data) + offset;
}

// That of branch b, one where it has none.
__device__ __forceinline__ float branch_weight(const SpreadParams& params, uint32_t offset, int b) {
  return b < params.weights.count ? weights_at(params, offset)[b * params.weights.stride_b] : 1.0f;
}

// What elements whose bit is 0 are multiplied with, if it is not 0: apply_gate does for that.
__device__ __forceinline__ bool has_leaky_gate(const SpreadParams& params) {
  return params.gate && params.gate_off != 0;
}
template <int kElements>
__device__ __forceinline__ void apply_leaky_gate(const SpreadParams& params, uint32_t bits,
                                                 float (&values)[kElements]) {
  const auto off = static_cast<float>(params.gate_off);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (!(bits >> i & 1)) values[i] *= off;
  }
}

// ---- dot products -------------------------------------------------------------------------------

// Which threads of a block sum up the same parts: those from `place` 0 to `count` - 1, `step`
// apart.
struct DotTeam {
  int32_t place, count, step;
};

// The dot products of gradients and forward values, in double: running sums per thread and branch,
// in shared memory because few launches want them. Several where the channels of a vector have
// weights of their own.
class DotSums {
 public:
  __device__ DotSums(const SpreadParams& params, const ReduceLaunch& launch, unsigned char* shared)
      : params_(params),
        launch_(launch),
        sums_(reinterpret_cast<double*>(shared + launch.dots_at)) {}

  // The same for every thread of the grid.
  __device__ bool wanted() const { return params_.partial_dots != nullptr; }
  // Whether each value of a vector is summed up apart.
  __device__ bool apart() const { return launch_.dot_values > 1; }

  __device__ void clear(int slots) {
    if (!wanted()) return;
#pragma unroll 1
    for (int i = 0; i < slots * launch_.dot_values; ++i) sums_[i * blockDim.x + threadIdx.x] = 0.0;
  }

  __device__ void add(int slot, double value) { sums_[slot * blockDim.x + threadIdx.x] += value; }

  __device__ void add_apart(int slot, int v, double value) {
    sums_[(slot * launch_.dot_values + v) * blockDim.x + threadIdx.x] += value;
  }

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
    for (int slot = 0; slot < slots; ++slot) {
      const int b = job.branch_of(slot);
      if (has_dots(params_, b))
        params_.partial_dots[params_.part_begin[b] + block] = sums_[slot * blockDim.x];
    }
  }

  // The sums over the thread's team, to the parts of a plane or an image. group: its number, of the
  // team's first channel where they are told apart. All threads of the block call it; those that
  // are in no team have a place of -1.
  __device__ void finish(const ReduceJob& job, const BlockWork& work, const DotTeam& team,
                         int64_t group) {
    if (!wanted()) return;
    __syncthreads();
    const int values = launch_.dot_values;
    const int count = job.slots() * values;
#pragma unroll 1
    for (int32_t half = 1; half < static_cast<int32_t>(blockDim.x); half *= 2) {
      if (team.place >= 0 && team.place % (2 * half) == 0 && team.place + half < team.count) {
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
          double* const own = sums_ + i * blockDim.x + threadIdx.x;
          *own += own[half * team.step];
        }
      }
      __syncthreads();
    }
    if (team.place != 0) return;
    const auto tiles = static_cast<uint32_t>(job.tiles);
    const auto part_tiles = static_cast<uint32_t>(job.part_tiles);
    const uint32_t chunk = work.block / tiles * part_tiles + work.tile % part_tiles;
    const auto chunks = static_cast<int64_t>(part_tiles) * job.strips * job.depths;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int b = job.branch_of(i / values);
      if (has_dots(params_, b))
        params_.partial_dots[params_.part_begin[b] + (group + i % values) * chunks + chunk] =
            sums_[i * blockDim.x + threadIdx.x];
    }
  }

 private:
  const SpreadParams& params_;
  const ReduceLaunch& launch_;
  double* const sums_;
};

// ---- what is written, and forward values --------------------------------------------------------

// Kernels of half or bfloat16 write and read that; those of float any of the three.
template <typename T, int V>
__device__ __forceinline__ void store_as(const Map& map, int64_t offset, const float (&values)[V]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (map.dtype == DType::kFloat16)
      return store_vector<Half, V>(static_cast<Half*>(map.data) + offset, values);
    if (map.dtype == DType::kBFloat16)
      return store_vector<BFloat16, V>(static_cast<BFloat16*>(map.data) + offset, values);
  }
  store_vector<T, V>(static_cast<T*>(map.data) + offset, values);
}

template <typename T, int V>
__device__ __forceinline__ void load_as(const void* data, DType dtype, int64_t offset,
                                        float (&values)[V]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::kFloat16)
      return widen_vector(load_vector<Half, V>(static_cast<const Half*>(data) + offset), values);
    if (dtype == DType::kBFloat16)
      return widen_vector(load_vector<BFloat16, V>(static_cast<const BFloat16*>(data) + offset),
                          values);
  }
  widen_vector(load_vector<T, V>(static_cast<const T*>(data) + offset), values);
}

template <typename T>
__device__ __forceinline__ float load_one_as(const void* data, DType dtype, int64_t offset) {
  if constexpr (sizeof(T) == sizeof(float)) return load<float>(data, dtype, offset);
  return widen<float>(static_cast<const T*>(data)[offset]);
}

// The forward values of branch b that belong to neighbours, `step` apart, from `offset` on: in
// vectors of V where the plan found that they allow it. The first `count` of kElements; the others
// are 0.
template <typename T, int V, int kElements>
__device__ __forceinline__ void load_inputs(const SpreadParams& params, int b, int64_t offset,
                                            int64_t step, bool vectors, int32_t count,
                                            float (&inputs)[kElements]) {
  const void* const data = params.inputs[b];
  const DType dtype = params.input_dtype[b];
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kElements; i += V) {
      float some[V] = {};
      if (V == kElements || i < count) load_as<T, V>(data, dtype, offset + i, some);
#pragma unroll
      for (int k = 0; k < V; ++k) inputs[i + k] = some[k];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    inputs[i] = 0.0f;
    if (V == kElements || i < count) inputs[i] = load_one_as<T>(data, dtype, offset + i * step);
  }
}

template <int kElements>
__device__ __forceinline__ float dot_product(const float (&a)[kElements],
                                             const float (&b)[kElements]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
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

// Whether every identity branch gets what was read, but for the gate: a copy.
template <typename T>
__device__ inline bool copies_identities(const SpreadParams& params, const ReduceJob& job) {
  if (params.weights.data || params.pixel_weights.data || has_leaky_gate(params)) return false;
#pragma unroll 1
  for (int b = job.identity_begin; b < job.identity_end; ++b) {
    if ((job.identities >> b & 1) && sizeof(T) != 2 &&
        params.branches[b].map.dtype != DType::kFloat32)
      return false;
  }
  return true;
}

// Copies elements to every identity branch: the first `count`, in vectors of V.
template <typename T, int V, int kVectors>
__device__ __forceinline__ void copy_to_identities(const SpreadParams& params, const ReduceJob& job,
                                                   int64_t offset,
                                                   const Vector<T, V> (&raw)[kVectors],
                                                   int32_t count) {
#pragma unroll 1
  for (int b = job.identity_begin; b < job.identity_end; ++b) {
    if (!(job.identities >> b & 1)) continue;
    T* const to = static_cast<T*>(params.branches[b].map.data) + offset;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (kVectors == 1 || i * V < count) *reinterpret_cast<Vector<T, V>*>(to + i * V) = raw[i];
    }
  }
}

// Writes gated elements of one plane to every identity branch, scaled, and adds to their dot
// products: the first `count` of kElements, in vectors of V. weight_offset(): offset_of_weights.
// with_pixels(b, values): multiplies them with factors of pixels.
template <typename T, int V, int kElements, typename Offset, typename Pixels>
__device__ __forceinline__ void write_identities(const SpreadParams& params, const ReduceJob& job,
                                                 const Offset& weight_offset, DotSums& dots,
                                                 int64_t offset, const float (&values)[kElements],
                                                 int32_t count, const Pixels& with_pixels) {
  int slot = job.num_branches;
#pragma unroll 1
  for (int b = job.identity_begin; b < job.identity_end; ++b) {
    if (!(job.identities >> b & 1)) continue;
    const Map& map = params.branches[b].map;
    float own[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) own[i] = values[i];
    with_pixels(b, own);
    const bool is_weighted = b < params.weights.count;
    if (dots.wanted() && is_weighted) {
      float inputs[kElements];
      load_inputs<T, V>(params, b, offset, 1, true, count, inputs);
      dots.add(slot, dot_product(own, inputs));
    }
    ++slot;
    if (!map.data) continue;
    float scale = 1.0f;
    if (is_weighted) scale = branch_weight(params, weight_offset(), b);
#pragma unroll
    for (int i = 0; i < kElements; i += V) {
      float scaled[V];
#pragma unroll
      for (int k = 0; k < V; ++k) scaled[k] = scale * own[i + k];
      if (V == kElements || i < count) store_as<T, V>(map, offset + i, scaled);
    }
  }
}

}  // namespace msr
