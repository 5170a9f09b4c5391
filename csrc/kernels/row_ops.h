// The inner loops of the CPU kernels, compiled once per instruction set and chosen at run time.
//
// A row is either one channel's pixels along the width, or (channels_last) pixels of several
// channels each. The drivers, gather_cpu.h and spread_cpu.h, say which rows are combined; what is
// here runs along them. Arguments are plain data: this header is compiled for several instruction
// sets, so it must not define functions that the linker could confuse.
#pragma once

#include <cstdint>

#include "activations.h"
#include "dtypes.h"

namespace msr {

// What happens to a finished sum: gate, bitmask, activation, one rounding. Bits begin with bit 0 of
// the first byte.
struct Finish {
  const uint8_t* gate;  // null, or a bit per value: zero where it is 0
  uint8_t* mask;        // null, or receives a bit per value, !(value <= 0), after the gate
  bool relu;
  DType dtype;  // of what is stored
};

// The accumulation type as an element type.
template <typename acc_t>
constexpr DType kSumType = sizeof(acc_t) == 4 ? DType::kFloat32 : DType::kFloat64;

// Which types of rows and results the operations take: one of them, or both, may be the
// accumulation type, or they are the same 16-bit one. Other rows are copied first. (Sums in float64
// are rare, and take float64 rows alone.)
template <typename acc_t>
MSR_HOST_DEVICE bool takes(DType row, DType result) {
  if constexpr (sizeof(acc_t) == 8) return row == DType::kFloat64;
  if (row == DType::kFloat64) return false;
  return row == DType::kFloat32 || result == DType::kFloat32 || row == result;
}

// to[k] = finish(base[k] + sum_i weights[i] * gates[i][k] * rows[i][k]) for `columns`
// pixels of `channels` values each, where a gate is 1 or gate_off. What is written and base
// are dense; rows have strides per pixel, gates in bytes. `base` is a map that is added as it
// lies: it has the result's type.
template <typename acc_t>
struct CombineArgs {
  void* to;
  const void* base;  // or null
  const void* const* rows;
  const uint8_t* const* gates;  // or null; if not, nothing else is added and finish only rounds
  const acc_t* weights;
  int32_t count;  // at least 1
  DType dtype;    // of the rows
  int64_t columns, channels;
  int64_t row_stride, gate_stride;
  Finish finish;  // bits only for one pixel
  acc_t gate_off = 0;
};

// Rows of one channel, one after the other, each the sum of some rows of a few planes. All rows are
// dense, of `columns` values; those of the planes are of the accumulation type. Row r has terms
// first[r] to first[r + 1] - 1: rows row[t] of planes[plane[t]], times weights[t].
template <typename acc_t>
struct CombineRowsArgs {
  void* to;
  const void* base;  // null, or rows that are added as they lie: of the result's type
  const acc_t* const* planes;
  const int32_t *first, *plane, *row;
  const acc_t* weights;
  int32_t rows;
  int64_t columns;
  const void** room;  // for as many pointers as a row has terms
  Finish finish;      // bits only where columns is a multiple of eight
};

// The taps of one axis as the loops read them. TapTable (tables_cpu.h) makes it.
template <typename acc_t>
struct Taps {
  const int32_t* first;  // of row i: taps first[i] to first[i] + count[i] - 1
  const int32_t* count;
  const int64_t* start;  // weights[start[i]] is the first one's weight
  const acc_t* weights;

  bool picks;  // every row has one tap, of weight one

  // Two taps of every row, if none has more; single ones twice with half their weight. Or null.
  const int32_t* pair_index;
  const acc_t* pair_weight;

  // Blocks of as many rows as a vector has lanes, where no row has more than two taps: the sources
  // lie in a window of one vector (two, if wide) that begins at window[block], at left_lane and
  // right_lane in it. A single tap is listed twice with half its weight. Null: there are none.
  const int32_t* window;
  const int32_t* left_lane;
  const int32_t* right_lane;
  const acc_t* left_weight;
  const acc_t* right_weight;
  bool wide;

  // Blocks in which row i has step_taps[block] taps that begin at step_first[block] + 2 * i (0:
  // other blocks), and their weights, tap by tap, at step_weights[step_start[block]]. A few rows
  // may be irregular, where their bit is set.
  const int32_t* step_taps;
  const int32_t* step_first;
  const int32_t* step_start;
  const uint32_t* step_irregular;
  const acc_t* step_weights;
};

// to[k] = finish(base[k] + sum over the taps of column begin + k of weight *
// row[index]), for one channel. row points at column 0, wherever that would be. Steps read up to
// two vectors beyond the taps, windows nothing beyond themselves. Several rows are read `step`
// elements apart, and written one after the other; they have no base and no bits.
template <typename acc_t>
struct AlongRowArgs {
  void* to;
  const void* base;  // or null
  const void* row;
  DType dtype;  // of the row
  const Taps<acc_t>* taps;
  int64_t begin, columns;
  Finish finish;
  int64_t rows = 1, step = 0;
};

// A row of pixels of several channels that is resampled along the width.
template <typename acc_t>
struct PixelSource {
  const void* row;     // its column 0, wherever that would be
  int64_t row_stride;  // elements per pixel
  const Taps<acc_t>* taps;
  acc_t factor;
};

// Neighbouring channels of the result: the sum of some sources.
template <typename acc_t>
struct PixelSlice {
  const PixelSource<acc_t>* sources;
  int32_t count;     // at least 1; only one if there are other slices
  int32_t max_taps;  // of one source
  int64_t channels;
  DType dtype;  // of the rows
  bool few;     // pixels have one tap in every source, or all sources list pairs
  bool copied;  // every pixel is one of the rows': one source of the result's type, and no finish
};

// Writes pixels of slices, one after the other, without gaps:
// to[k] = finish(base[k] + sum over the sources, and over the taps of column begin + k, of factor *
// weight * row[index]). Where there are several slices, base is null; where there are bits, every
// slice has a multiple of eight channels.
template <typename acc_t>
struct AlongPixelsArgs {
  void* to;
  const void* base;  // or null: dense, of the result's type
  const PixelSlice<acc_t>* slices;
  int32_t count;
  int64_t begin, columns;
  Finish finish;
};

// to[k] = (add ? to[k] : 0) + factor * per_channel[k % channels] * per_pixel[k / channels] *
// from[k] for `columns` pixels of `channels` values; what is null is one.
template <typename acc_t>
struct WeighArgs {
  acc_t* to;
  const acc_t* from;
  acc_t factor;
  const acc_t* per_channel;  // null where channels is one
  const acc_t* per_pixel;
  int64_t columns, channels;
  bool add;
  const int32_t* index = nullptr;  // for weigh_sum of several channels: which of from's pixels
};

constexpr int kMostTerms = 16;  // of a weigh_sum

// Largest elements, and the numbers of the rows of their windows that they are from.
template <typename acc_t>
struct PoolRow {
  acc_t *values, *rows;
};
// The same, and the numbers of the columns.
template <typename acc_t>
struct PoolPlace {
  acc_t *values, *rows, *columns;
};

// What a row of a max-pooled map's gradient gets from a row of windows. Their codes are numbers of
// elements of the window: first + t is the t-th of those in this row. Window k begins at
// to[k * step * channels]; its elements are `spacing` values apart.
template <typename acc_t>
struct TakenArgs {
  acc_t* to;
  const acc_t* grad;  // dense
  const void* codes;
  bool wide;  // int32; else uint8
  int64_t code_column_stride, code_channel_stride;
  int32_t first, taps;
  int64_t step, spacing;
  int64_t columns, channels;
};

// Resampled logits of some classes, each `stride` after the one before, and what is known of those
// before them: the largest, and the sum of exp(value - largest).
template <typename acc_t>
struct LogitsArgs {
  const acc_t* values;
  int64_t stride;
  int32_t classes;  // at least 1
  int64_t columns;
  acc_t *largest, *sum;
};

// Resampled logits of one class, what their gradients are made of, and, where pixels have a class
// as a target, its number and what is subtracted at the pixels of class `own`.
template <typename acc_t>
struct SoftmaxGradArgs {
  acc_t* to;  // logits; replaced by gradients
  const acc_t *lse, *factor;
  const acc_t *classes, *of_class;  // or null
  acc_t own;
  int64_t columns;
};

// Resampled logits of one channel, and what belongs to them; null factors are one.
template <typename acc_t>
struct BinaryArgs {
  acc_t* values;        // logits; replaced by losses, or by gradients
  const acc_t* target;  // probabilities
  const acc_t *weight, *pos_weight;
  const acc_t* grad;  // for gradients
  int64_t columns;
};

template <typename acc_t>
struct RowOps {
  const char* name;
  int32_t lanes;
  bool can_look_up;  // permutes within windows
  void (*combine)(const CombineArgs<acc_t>&);
  void (*combine_rows)(const CombineRowsArgs<acc_t>&);
  void (*along_row)(const AlongRowArgs<acc_t>&);
  void (*along_pixels)(const AlongPixelsArgs<acc_t>&);
  void (*weigh)(const WeighArgs<acc_t>&);
  // The sum of several such terms, of one `to`, in one pass.
  void (*weigh_sum)(const WeighArgs<acc_t>* terms, int32_t count);
  // to[k] = the larger of best[k] and row[k]; bits: null, or a bit per value where it is row[k]: it
  // is larger, or the first NaN.
  void (*maximum)(acc_t* to, const acc_t* best, const acc_t* row, int64_t length, uint8_t* bits);
  // z[k] = act(z[k]); bits: null, or receives passes(activation, z[k]).
  void (*activate)(Activation activation, acc_t* z, int64_t length, uint8_t* bits);
  // z[k] = grad[k] * act'(z[k])
  void (*differentiate)(Activation activation, acc_t* z, const acc_t* grad, int64_t length);
  // row[k] *= off where the bit is 0; an infinite row[k] times zero is zero.
  void (*gate)(acc_t* row, const uint8_t* bits, acc_t off, int64_t length);
  // Adds a[k] * b[k] to sums[k % channels].
  void (*dot)(const acc_t* a, const acc_t* b, int64_t columns, int64_t channels, double* sums);
  // Adds a[k] * b[k] to sums[k / channels].
  void (*dot_pixels)(const acc_t* a, const acc_t* b, int64_t columns, int64_t channels,
                     acc_t* sums);
  // Max-pooling, over the rows of windows and then over their columns: see max_pool_cpu.h. numbers:
  // of the `count` rows or columns. Numbers of what was taken are kept where there is room for
  // them.
  void (*take_rows)(PoolRow<acc_t> to, const acc_t* const* rows, const acc_t* numbers,
                    int32_t count, int64_t length);
  void (*take_columns)(PoolPlace<acc_t> to, const PoolRow<acc_t>* columns, const acc_t* numbers,
                       int32_t count, int64_t length);
  // codes[k] = rows[k] * width + columns[k], of what was taken.
  void (*put_codes)(uint8_t* codes, const acc_t* rows, const acc_t* columns, acc_t width,
                    int64_t length);
  void (*add_taken)(const TakenArgs<acc_t>&);
  // Cross entropy, see cross_entropy_cpu.h. Takes the classes into the largest and the sum.
  void (*add_exponentials)(const LogitsArgs<acc_t>&);
  // Takes the classes, whose numbers begin with `first`, into the largest and its number: that of
  // the first among equals, or of the first NaN.
  void (*find_largest)(const LogitsArgs<acc_t>&, acc_t* number, acc_t first);
  // to[k] = factor[k] * exp(to[k] - lse[k]) - (classes[k] == own ? of_class[k] : 0)
  void (*softmax_gradients)(const SoftmaxGradArgs<acc_t>&);
  // to[k] = largest[k] + log(sum[k])
  void (*log_sums)(acc_t* to, const acc_t* largest, const acc_t* sum, int64_t length);
  // Binary cross entropy, see binary_cross_entropy_cpu.h.
  void (*binary_losses)(const BinaryArgs<acc_t>&);
  double (*binary_loss_sum)(const BinaryArgs<acc_t>&);  // replaces nothing
  void (*binary_gradients)(const BinaryArgs<acc_t>&);
};

// One per instruction set; null where the compiler has none of it.
const RowOps<float>* row_ops_generic();
const RowOps<float>* row_ops_avx2();
const RowOps<float>* row_ops_avx512();
const RowOps<double>* row_ops_double();

// What this machine runs, or null where the environment variable MSR_CUDA_CPU_ISA asks for what it
// cannot; why is then a message.
struct RowOpsChoice {
  const RowOps<float>* ops;
  const char* why;
};
RowOpsChoice choose_row_ops();

}  // namespace msr
