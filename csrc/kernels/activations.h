// Activations and their derivatives, for the host and the device.
//
// The formulas are those of torch.nn.functional; gelu is the exact one. They are written for a
// number or for a vector of numbers (row_ops_impl.h has those): conditions choose between values.
// On the host, exp in float32 is Cephes' expf (Moshier), within 2 ulp, and erf is Abramowitz and
// Stegun 7.1.26, within 2e-7.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "resample_math.h"

namespace msr {

// The numbers are those of msr_cuda/_spec.py.
enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kLeakyRelu = 3,
  kSilu = 4,
  kGelu = 5,
  kHardswish = 6,
  kSigmoid = 7,
};
constexpr int32_t kNumActivations = 8;
constexpr double kLeakySlope = 0.01;  // torch.nn.LeakyReLU's

// Whether one bit per element is all that its derivative takes.
MSR_HOST_DEVICE bool has_bit_derivative(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kRelu6 ||
         activation == Activation::kLeakyRelu;
}

// The type of one number of V, and of its bits.
template <typename V>
struct NumberOf {
  using type = V;
  using bits = uint32_t;
};
template <typename V>
using number_t = typename NumberOf<V>::type;

template <typename V>
MSR_HOST_DEVICE V fill(double value) {
  return V{} + static_cast<number_t<V>>(value);
}

template <typename C, typename V>
MSR_HOST_DEVICE V choose(C condition, V a, V b) {
  return condition ? a : b;
}

// 2^n, where n was added to 1.5 * 2^23: it stands in the last bits.
template <typename V>
MSR_HOST_DEVICE V power_of_two(V shifted) {
  typename NumberOf<V>::bits bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}

// 2^n exp(r) with |r| <= ln(2) / 2, for x up to 88. Below -87 it keeps the value there, short of
// subnormal results; NaN stays.
template <typename V>
MSR_HOST_DEVICE V float_exp_below(V x) {
  x = choose(x < -87.0f, fill<V>(-87), x);
  const V shifted = x * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * power_of_two(shifted);
}

// Above 88 it keeps the value there, short of infinite results.
template <typename V>
MSR_HOST_DEVICE V float_exp(V x) {
  return float_exp_below(choose(x > 88.0f, fill<V>(88), x));
}

template <typename V>
MSR_HOST_DEVICE V exp_of(V x) {
  if constexpr (sizeof(number_t<V>) == 8) return exp(x);
#if defined(__CUDA_ARCH__)
  else
    return expf(x);
#else
  else
    return float_exp(x);
#endif
}

// exp(x) where x is not above 88.
template <typename V>
MSR_HOST_DEVICE V exp_below(V x) {
#if !defined(__CUDA_ARCH__)
  if constexpr (sizeof(number_t<V>) == 4) return float_exp_below(x);
#endif
  return exp_of(x);
}

// Of a positive, normal number: Cephes' logf (Moshier), within 1 ulp. Infinity and NaN stay.
template <typename V>
MSR_HOST_DEVICE V float_log(V x) {
  typename NumberOf<V>::bits bits, exponent;
  memcpy(&bits, &x, sizeof bits);
  exponent = (bits >> 23) + 0x4b400000u;  // 1.5 * 2^23 and the exponent, as a float
  bits = (bits & 0x007fffffu) | 0x3f000000u;
  V n, m;
  memcpy(&n, &exponent, sizeof n);
  memcpy(&m, &bits, sizeof m);  // from 0.5 to 1
  n = n - (12582912.0f + 126.0f);
  const auto low = m < 0.70710678f;
  n = choose(low, n - 1.0f, n);
  m = choose(low, m + m, m) - 1.0f;
  V p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const V square = m * m;
  V y = m * square * p + n * -2.12194440e-4f - square * 0.5f;
  y = m + y + n * 0.693359375f;
  return choose((x > 3.4028234e38f) | (x != x), x, y);
}

template <typename V>
MSR_HOST_DEVICE V log_of(V x) {
  if constexpr (sizeof(number_t<V>) == 8) return log(x);
#if defined(__CUDA_ARCH__)
  else
    return logf(x);
#else
  else
    return float_log(x);
#endif
}

// log(1 + x) for x from 0 to 1, as 2 artanh(x / (x + 2)): a polynomial fitted to the odd series up
// to 1/3, within 2 ulp. NaN stays.
template <typename V>
MSR_HOST_DEVICE V float_log1p(V x) {
  const V s = x / (x + 2.0f), square = s * s;
  V p = square * 0.28024631f + 0.27999109f;
  p = p * square + 0.40021701f;
  p = p * square + 0.66666413f;
  return s * (square * p) + (s + s);
}

template <typename V>
MSR_HOST_DEVICE V log1p_of(V x) {
  if constexpr (sizeof(number_t<V>) == 8) return log1p(x);
#if defined(__CUDA_ARCH__)
  else
    return log1pf(x);
#else
  else
    return float_log1p(x);
#endif
}

template <typename V>
MSR_HOST_DEVICE V float_erf(V x) {
  const V magnitude = choose(x < 0.0f, -x, x);
  const V t = 1.0f / (magnitude * 0.3275911f + 1.0f);
  V p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V value = 1.0f - p * t * float_exp(-magnitude * magnitude);
  return choose(x < 0.0f, -value, value);
}

template <typename V>
MSR_HOST_DEVICE V erf_of(V x) {
  if constexpr (sizeof(number_t<V>) == 8) return erf(x);
#if defined(__CUDA_ARCH__)
  else
    return erff(x);
#else
  else
    return float_erf(x);
#endif
}

template <typename V>
MSR_HOST_DEVICE V sigmoid_of(V z) {
  return number_t<V>(1) / (exp_of(-z) + number_t<V>(1));
}

// The distribution function of the standard normal distribution.
template <typename V>
MSR_HOST_DEVICE V normal_of(V z) {
  using T = number_t<V>;
  return (erf_of(z * T(0.70710678118654752440)) + T(1)) * T(0.5);
}

// Whether the derivative's bit is set. At NaN gradients pass, as in PyTorch. A bool, or a vector of
// conditions.
template <typename V>
MSR_HOST_DEVICE auto passes(Activation activation, V z) {
  using T = number_t<V>;
  const auto positive = !(z <= T(0));
  if (activation == Activation::kLeakyRelu) return z > T(0);
  if (activation == Activation::kRelu6)
    return static_cast<std::decay_t<decltype(positive)>>(positive & !(z >= T(6)));
  return positive;
}

// Conditions are such that NaN stays.
template <typename V>
MSR_HOST_DEVICE V activate(Activation activation, V z) {
  using T = number_t<V>;
  switch (activation) {
    case Activation::kRelu:
      return choose(z <= T(0), V{}, z);
    case Activation::kRelu6:
      return choose(z <= T(0), V{}, choose(z >= T(6), fill<V>(6), z));
    case Activation::kLeakyRelu:
      return choose(z > T(0), z, z * T(kLeakySlope));
    case Activation::kSilu:
      return z * sigmoid_of(z);
    case Activation::kGelu:
      return z * normal_of(z);
    case Activation::kHardswish: {
      const V shifted = z + T(3);
      const V limited = choose(shifted <= T(0), V{}, choose(shifted >= T(6), fill<V>(6), shifted));
      return z * limited / T(6);
    }
    case Activation::kSigmoid:
      return sigmoid_of(z);
    case Activation::kNone:
      break;
  }
  return z;
}

// The derivative of activate().
template <typename V>
MSR_HOST_DEVICE V slope(Activation activation, V z) {
  using T = number_t<V>;
  const V one = fill<V>(1);
  switch (activation) {
    case Activation::kRelu:
      return choose(z <= T(0), V{}, one);
    case Activation::kRelu6:
      return choose(z <= T(0), V{}, choose(z >= T(6), V{}, one));
    case Activation::kLeakyRelu:
      return choose(z > T(0), one, fill<V>(kLeakySlope));
    case Activation::kSilu: {
      const V s = sigmoid_of(z);
      return s * (z * (T(1) - s) + T(1));
    }
    case Activation::kGelu:  // 0.39894… = 1 / sqrt(2 pi)
      return z * exp_of(z * z * T(-0.5)) * T(0.39894228040143267794) + normal_of(z);
    case Activation::kHardswish:
      return choose(z <= T(-3), V{}, choose(z >= T(3), one, z / T(3) + T(0.5)));
    case Activation::kSigmoid: {
      const V s = sigmoid_of(z);
      return s * (T(1) - s);
    }
    case Activation::kNone:
      break;
  }
  return one;
}

}  // namespace msr
