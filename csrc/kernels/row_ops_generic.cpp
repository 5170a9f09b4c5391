// The row operations for any machine: four lanes by the compiler's own vectors, and float64.
#include "row_ops_impl.h"

namespace msr {

const RowOps<float>* row_ops_generic() {
  static constexpr RowOps<float> kOps = make_row_ops<Vec, Vec::kCanLookUp>("generic");
  return &kOps;
}

const RowOps<double>* row_ops_double() {
  static constexpr RowOps<double> kOps = make_row_ops<Scalar<double>, false>("generic");
  return &kOps;
}

}  // namespace msr
