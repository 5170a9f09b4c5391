// REDUCE for exact factors of 2, 4 and 8 along the columns: gradients of up to kGroup branches, and
// of any identity branches, from one read of the incoming gradient.
//
// A thread owns V neighbouring columns of the gradient and walks down the rows of its strip. The
// low-resolution columns under its V columns are its own too, so it needs no shared memory for
// them: each row is first summed along its columns (linear: with half a factor of columns from the
// neighbours on either side, which the L1 cache has), then added to the two rows of the branch that
// are still incomplete. No more rows of the gradient are to come for a row of the branch: it is
// written, once. Sums are taken in float32 in a fixed order.
#pragma once

#include <type_traits>

#include "reduce_device.cuh"

namespace msr {

// One row of the gradient as a thread sees it: its columns and half as many on either side.
template <typename T, int V>
struct RowWindow {
  Vector<T, V / 2> left;
  Vector<T, V> middle;
  Vector<T, V / 2> right;
};

// What a thread knows of a branch: its factor, and where in the table the weights of the thread's
// first and last columns of the branch are, and those between them.
struct AlignedForm {
  int32_t factor;
  bool linear;
  int16_t first_weights;
  int16_t inner_weights;
  int16_t last_weights;
};

__device__ inline AlignedForm aligned_form(const Branch& branch, int vector, bool first_vector,
                                           bool last_vector, int r) {
  const Axis& axis = branch.axis[2];
  const int32_t factor = axis.out_size / axis.in_size;
  const int last_class = last_vector ? 2 : 1;
  // A thread's only column of the branch counts as its first.
  const int first_class = first_vector ? 0 : factor == vector ? last_class : 1;
  const int begin = r * kAlignedClasses * kAlignedTaps;
  return {factor, is_linear(axis.rule), static_cast<int16_t>(begin + first_class * kAlignedTaps),
          static_cast<int16_t>(begin + kAlignedTaps),
          static_cast<int16_t>(begin + last_class * kAlignedTaps)};
}

// The horizontal weights of every branch, by class of column and tap.
__device__ inline void fill_column_weights(const SpreadParams& params, const ReduceJob& job,
                                           float* weights) {
  constexpr int kPerBranch = kAlignedClasses * kAlignedTaps;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < job.num_branches * kPerBranch;
       i += static_cast<int>(blockDim.x)) {
    const Axis& axis = params.branches[job.branches[i / kPerBranch]].axis[2];
    const int32_t factor = axis.out_size / axis.in_size;
    const int column_class = i / kAlignedTaps % kAlignedClasses;
    const int32_t last = axis.in_size - 1;
    const int32_t s = column_class == 0 ? 0 : column_class == 2 ? last : min(1, last);
    const int32_t d = factor * s - factor / 2 + i % kAlignedTaps;
    const bool inside = i % kAlignedTaps < 2 * factor && d >= 0 && d < axis.out_size;
    weights[i] = inside ? weight<float>(axis, d, s) : 0.0f;
  }
}

// Adds one row, summed along its columns with factor S, to two rows of the branch.
template <int S, bool kLinear, typename T, int V>
__device__ __forceinline__ void add_row_of(const AlignedForm& form, const RowWindow<T, V>& window,
                                           const float (&middle)[V], const float* weights,
                                           float first, float second, float (&sums)[2][V / 2]) {
  constexpr int kOutputs = V / S;
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    float sum = 0;
    if constexpr (kLinear) {
      const int from = k == 0              ? form.first_weights
                       : k == kOutputs - 1 ? form.last_weights
                                           : form.inner_weights;
#pragma unroll
      for (int t = 0; t < 2 * S; t += 4) {
        const Vector<float, 4> taps = load_vector<float, 4>(weights + from + t);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = S * k - S / 2 + t + i;
          const float value = column < 0    ? widen_element(window.left, column + V / 2)
                              : column >= V ? widen_element(window.right, column - V)
                                            : middle[column];
          sum = fmaf(taps.at[i], value, sum);
        }
      }
      sums[1][k] = fmaf(second, sum, sums[1][k]);
    } else {
#pragma unroll
      for (int t = 0; t < S; ++t) sum += middle[S * k + t];
    }
    sums[0][k] = fmaf(first, sum, sums[0][k]);
  }
}

// The same for a factor and rule that are known at run time only: uniform branches.
template <typename T, int V>
__device__ __forceinline__ void add_row(const AlignedForm& form, const RowWindow<T, V>& window,
                                        const float (&middle)[V], const float* weights, float first,
                                        float second, float (&sums)[2][V / 2]) {
  const auto add = [&](auto factor) {
    constexpr int S = decltype(factor)::value;
    if constexpr (S <= V) {
      if (form.linear) {
        add_row_of<S, true>(form, window, middle, weights, first, second, sums);
      } else {
        add_row_of<S, false>(form, window, middle, weights, first, second, sums);
      }
    }
  };
  if (form.factor == 2) {
    add(std::integral_constant<int, 2>{});
  } else if (form.factor == 4) {
    add(std::integral_constant<int, 4>{});
  } else {
    add(std::integral_constant<int, 8>{});
  }
}

// Stores the first `count` values: V / 2, V / 4 or V / 8 of them.
template <typename T, int V>
__device__ __forceinline__ void store_some(const Map& map, int64_t offset,
                                           const float (&values)[V / 2], int count) {
  if (count == V / 2) {
    store_as<T, V / 2>(map, offset, values);
    return;
  }
  if constexpr (V == 8) {
    if (count == 2) {
      const float two[2] = {values[0], values[1]};
      store_as<T, 2>(map, offset, two);
      return;
    }
  }
  const float one[1] = {values[0]};
  store_as<T, 1>(map, offset, one);
}

// Loads the first `count` values: V / 2, V / 4 or V / 8 of them; the others are 0.
template <typename T, int V>
__device__ __forceinline__ void load_some(const void* data, DType dtype, int64_t offset,
                                          float (&values)[V / 2], int count) {
#pragma unroll
  for (int k = 0; k < V / 2; ++k) values[k] = 0.0f;
  if (count == V / 2) {
    load_as<T, V / 2>(data, dtype, offset, values);
    return;
  }
  values[0] = load_one_as<T>(data, dtype, offset);
  if constexpr (V == 8) {
    if (count == 2) values[1] = load_one_as<T>(data, dtype, offset + 1);
  }
}

// Where a thread writes a branch: at its row `current`.
template <typename T, int V>
struct AlignedOutput {
  int64_t at;  // elements
  float scale;

  __device__ __forceinline__ void advance(const SpreadParams& params, const ReduceJob& job, int r) {
    at += params.branches[job.branches[r]].map.stride[3];
  }

  __device__ __forceinline__ void start(const SpreadParams& params, const ReduceJob& job, int r,
                                        uint32_t weight_offset, int32_t factor, int64_t n,
                                        int64_t c, int32_t depth, int32_t row, int32_t x) {
    const int b = job.branches[r];
    scale = branch_weight(params, weight_offset, b);
    at = offset_in(params.branches[b].map.stride, n, c, depth, row, x / factor);
  }

  __device__ __forceinline__ void write(const SpreadParams& params, const ReduceJob& job, int r,
                                        int32_t factor, int64_t n, int64_t c, int32_t depth,
                                        int32_t row, int32_t x, const float (&sums)[V / 2],
                                        DotSums& dots) const {
    const int b = job.branches[r];
    const Map& map = params.branches[b].map;
    const int outputs = factor == 2 ? V / 2 : factor == 4 ? V / 4 : V / 8;
    if (map.data) {
      float scaled[V / 2];
#pragma unroll
      for (int k = 0; k < V / 2; ++k) scaled[k] = scale * sums[k];
      store_some<T, V>(map, at, scaled, outputs);
    }
    if (!dots.wanted() || b >= params.weights.count) return;
    float inputs[V / 2];
    if (job.vector_inputs >> b & 1) {  // they lie as what is written does
      load_some<T, V>(params.inputs[b], map.dtype, at, inputs, outputs);
    } else {
      const int64_t (&stride)[kDims] = params.input_stride[b];
      const int64_t first = offset_in(stride, n, c, depth, row, x / factor);
#pragma unroll
      for (int k = 0; k < V / 2; ++k) {
        inputs[k] = 0.0f;
        if (k < outputs)
          inputs[k] =
              load_one_as<T>(params.inputs[b], params.input_dtype[b], first + k * stride[4]);
      }
    }
    dots.add(r, dot_product(sums, inputs));
  }
};

template <typename T, int V, int kGroup>
__global__ void __launch_bounds__(kReduceThreads, kGroup == 1 ? 3 : 2)
    reduce_aligned_kernel(const __grid_constant__ SpreadParams params,
                          const __grid_constant__ ReduceLaunch launch) {
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap<kTapRows>*>(shared + launch.rows_at);
  auto* const column_weights = reinterpret_cast<float*>(shared + launch.columns_at);
  DotSums dots(params, launch, shared);
  set_up_block<kTapRows>(params, launch, NoTables{}, shared);
  const ReduceJob& job = launch.jobs[work.job];
  fill_column_weights(params, job, column_weights);
  dots.clear(job.slots());
  __syncthreads();

  const Map& grad = params.grad;
  const uint32_t item = work.tile * static_cast<uint32_t>(job.tile_items) + threadIdx.x;
  const auto plane_items = static_cast<uint32_t>(job.plane_items);
  const uint32_t plane = item / plane_items;
  const auto x = static_cast<int32_t>(item - plane * plane_items) * V;
  const auto width = static_cast<int32_t>(grad.size[4]);
  const bool live = threadIdx.x < static_cast<uint32_t>(job.tile_items) &&
                    item < static_cast<uint32_t>(job.items) && x < width;
  if (live) {
    const auto channels = static_cast<uint32_t>(params.branches[job.first].map.size[1]);
    const uint32_t n = plane / channels;
    const uint32_t c = plane - n * channels;
    const uint32_t weight_offset =
        offset_of_weights(params, n, c + params.branches[job.first].channel_begin);
    const bool first_vector = x == 0;
    const bool last_vector = x + V == width;
    const Range walked = work.rows;
    const Range strip = work.strip;
    const int num_outer = work.num_outer;
    int64_t gate_bit;  // of the row that is loaded next, as is the address
    const T* row_address = outer_origin<T>(params, job, work, n, c, walked.begin, x, gate_bit);

    const bool copies = copies_identities<T>(params, job);
    int64_t identity_at = identity_offset(params, job, work, n, c, walked.begin, x);

    AlignedForm form[kGroup];
    int32_t current[kGroup];  // row of the branch that sums[0] belongs to
    float sums[kGroup][2][V / 2];
    bool any_linear = false;
#pragma unroll
    for (int r = 0; r < kGroup; ++r) {
      form[r] = {};
      current[r] = 0;
#pragma unroll
      for (int k = 0; k < V / 2; ++k) sums[r][0][k] = sums[r][1][k] = 0.0f;
      if (r >= job.num_branches) continue;
      form[r] = aligned_form(params.branches[job.branches[r]], V, first_vector, last_vector, r);
      any_linear = any_linear || form[r].linear;
      current[r] = work.owned[r].begin;
      current[r] = min(current[r], rows[r * launch.row_capacity].index);
    }
    AlignedOutput<T, V> output[kGroup];
#pragma unroll
    for (int r = 0; r < kGroup; ++r) {
      if (r < job.num_branches)
        output[r].start(params, job, r, weight_offset, form[r].factor, n, c, work.depth, current[r],
                        x);
    }

    // Row `current` of branch r is complete: it is written, if this strip owns it, and the next one
    // takes its place.
    const auto finish_row = [&](int r) {
      if (current[r] >= work.owned[r].begin && current[r] < work.owned[r].end)
        output[r].write(params, job, r, form[r].factor, n, c, work.depth, current[r], x, sums[r][0],
                        dots);
      output[r].advance(params, job, r);
#pragma unroll
      for (int k = 0; k < V / 2; ++k) {
        sums[r][0][k] = sums[r][1][k];
        sums[r][1][k] = 0.0f;
      }
      ++current[r];
    };

    const auto load_row = [&](int tap) {
      const T* at = row_address;
      int64_t bit = gate_bit;
      if (tap > 0) {
        at += outer[tap].grad_offset;
        bit += outer[tap].gate_offset;
      }
      RowWindow<T, V> window{};
      window.middle = load_vector<T, V>(at);
      const bool left = any_linear && !first_vector, right = any_linear && !last_vector;
      if (left) window.left = load_vector<T, V / 2>(at - V / 2);
      if (right) window.right = load_vector<T, V / 2>(at + V);
      if (params.gate) {
        if constexpr (V == 8) {
          // Rows are whole bytes of the gate.
          const uint8_t* const bits = params.gate + (bit >> 3);
          apply_gate(window.middle, bits[0]);
          if (left) apply_gate(window.left, bits[-1] >> 4);
          if (right) apply_gate(window.right, bits[1]);
        } else {
          apply_gate(window.middle, gate_bits<V>(params.gate, bit));
          if (left) apply_gate(window.left, gate_bits<V / 2>(params.gate, bit - V / 2));
          if (right) apply_gate(window.right, gate_bits<V / 2>(params.gate, bit + V));
        }
      }
      return window;
    };

    int32_t y = walked.begin;
    int tap = 0;
    const RowTap<kTapRows>* row_taps = rows;
    RowWindow<T, V> next{};
    if (y < walked.end) next = load_row(tap);
#pragma unroll 1
    while (y <= walked.end) {  // the last time with nothing but rows to finish
      const RowWindow<T, V> window = next;
      const RowTap<kTapRows>* const these_taps = row_taps;
      const int32_t this_y = y;
      const OuterTap& plane_tap = outer[tap];
      if (++tap >= num_outer) {
        tap = 0;
        ++y;
        ++row_taps;
        row_address += grad.stride[3];
        gate_bit += grad.size[4];
      }
      if (y < walked.end) next = load_row(tap);  // one ahead of its use
      float middle[V];
      widen_vector(window.middle, middle);
      if (job.identities) {
        const int64_t (&stride)[kDims] = params.branches[job.identity_begin].map.stride;
        if (plane_tap.depth >= 0 && this_y >= strip.begin && this_y < strip.end) {
          int64_t at = identity_at;
          if (num_outer > 1) at += (plane_tap.depth - work.depths.begin) * stride[2];
          if (copies) {
            copy_to_identities<T, V, 1>(params, job, at, {window.middle}, V);
          } else {
            write_identities<T, V>(
                params, job, [&] { return weight_offset; }, dots, at, middle, V,
                [](int, float (&)[V]) {});
          }
        }
        if (y != this_y) identity_at += stride[3];
      }
#pragma unroll
      for (int r = 0; r < kGroup; ++r) {
        if (r >= job.num_branches) continue;
        const RowTap<kTapRows> row = these_taps[r * launch.row_capacity];
#pragma unroll 1
        while (current[r] < row.index) finish_row(r);
        add_row(form[r], window, middle, column_weights, plane_tap.weight * row.weight[0],
                plane_tap.weight * row.weight[1], sums[r]);
      }
    }
  }
  if (launch.part_images) {
    // Threads of one plane are neighbours.
    const auto before = static_cast<int32_t>(item % plane_items);
    const int32_t place = min(static_cast<int32_t>(threadIdx.x), before);
    const auto rest = static_cast<int32_t>(plane_items) - before + place;
    const int32_t count = min(rest, job.tile_items - static_cast<int32_t>(threadIdx.x) + place);
    const bool in_team = item < static_cast<uint32_t>(job.items) &&
                         threadIdx.x < static_cast<uint32_t>(job.tile_items);
    dots.finish(job, work, {in_team ? place : -1, count, 1}, plane);
  } else {
    dots.finish(job, work.block);
  }
}

}  // namespace msr
