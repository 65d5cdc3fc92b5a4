#pragma once
// Every elementwise function, one struct each: forward(x), and derivative(x, y) with y = forward(x). To add
// one, write its struct, put it into UnaryFunctions or BinaryFunctions at the end, and name it in
// elementwise.h.

#include "autograd/dtype.h"
#include "autograd/ops/vector_math.h"

namespace weft {

struct Negate {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return -x;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T) {
    return T(-1);
  }
};
struct Exp {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return vector_math::exp(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T y) {
    return y;
  }
};
struct Log {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return std::log(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return T(1) / x;
  }
};
struct Sqrt {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return std::sqrt(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T y) {
    return T(0.5) / y;
  }
};
struct Reciprocal {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return T(1) / x;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T y) {
    return -y * y;
  }
};
struct Square {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return x * x;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return T(2) * x;
  }
};
struct Sin {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return std::sin(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return std::cos(x);
  }
};
struct Cos {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return std::cos(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return -std::sin(x);
  }
};
struct Sigmoid {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return vector_math::sigmoid(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T y) {
    return y * (T(1) - y);
  }
};
struct Tanh {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return vector_math::tanh(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T, T y) {
    return T(1) - y * y;
  }
};
struct Relu {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return x > T(0) ? x : T(0);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return x > T(0) ? T(1) : T(0);
  }
};
struct Abs {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return x < T(0) ? -x : x;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return x < T(0) ? T(-1) : (x > T(0) ? T(1) : T(0));
  }
};
// x sigmoid(x)
struct Silu {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return x * vector_math::sigmoid(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    const T s = vector_math::sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
  }
};
// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
struct Gelu {
  template <class T>
  WEFT_HOST_DEVICE static T inner(T x) {
    return T(0.7978845608028654) * (x + T(0.044715) * x * x * x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return T(0.5) * x * (T(1) + vector_math::tanh(inner(x)));
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    const T t = vector_math::tanh(inner(x));
    return T(0.5) * (T(1) + t) +
           T(0.5) * x * (T(1) - t * t) * T(0.7978845608028654) * (T(1) + T(3 * 0.044715) * x * x);
  }
};
// 1/2 (1 + erf(x / sqrt 2)), the distribution function of the standard normal
struct NormalCdf {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return T(0.5) * std::erfc(x * T(-0.7071067811865476));
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return T(0.3989422804014327) * vector_math::exp(T(-0.5) * x * x);
  }
};
// The derivative of Gelu, itself differentiable: memories that learn at test time use it as an op.
struct GeluDerivative {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return Gelu::derivative(x, T(0));
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    const T t = vector_math::tanh(Gelu::inner(x));
    const T slope = T(0.7978845608028654) * (T(1) + T(3 * 0.044715) * x * x);  // of inner
    const T bend = T(0.7978845608028654) * T(6 * 0.044715) * x;
    return (T(1) - t * t) * (slope + x * (T(0.5) * bend - t * slope * slope));
  }
};
// log(1 + e^x), without overflow
struct Softplus {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return (x > T(0) ? x : T(0)) + std::log1p(vector_math::exp(x > T(0) ? -x : x));
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return vector_math::sigmoid(x);
  }
};
// log sigmoid(x)
struct LogSigmoid {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return -Softplus::forward(-x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T) {
    return vector_math::sigmoid(-x);
  }
};
// elu(x) + 1: the positive feature map of Katharopoulos et al., 2020
struct EluPlusOne {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T x) {
    return x > T(0) ? x + T(1) : vector_math::exp(x);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative(T x, T y) {
    return x > T(0) ? T(1) : y;
  }
};

// Two arguments: forward(a, b) and both partial derivatives.
struct Add {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a + b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T, T) {
    return T(1);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T, T) {
    return T(1);
  }
};
struct Subtract {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a - b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T, T) {
    return T(1);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T, T) {
    return T(-1);
  }
};
struct Multiply {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a * b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T, T b) {
    return b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T a, T) {
    return a;
  }
};
struct Divide {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a / b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T, T b) {
    return T(1) / b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T a, T b) {
    return -a / (b * b);
  }
};
// The larger; a where both are equal.
struct Maximum {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a >= b ? a : b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T a, T b) {
    return a >= b ? T(1) : T(0);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T a, T b) {
    return a >= b ? T(0) : T(1);
  }
};
struct Minimum {
  template <class T>
  WEFT_HOST_DEVICE static T forward(T a, T b) {
    return a <= b ? a : b;
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_a(T a, T b) {
    return a <= b ? T(1) : T(0);
  }
  template <class T>
  WEFT_HOST_DEVICE static T derivative_b(T a, T b) {
    return a <= b ? T(0) : T(1);
  }
};

template <class... Functions>
struct FunctionList {};

using UnaryFunctions =
    FunctionList<Negate, Exp, Log, Sqrt, Reciprocal, Square, Sin, Cos, Sigmoid, Tanh, Relu, Abs, Silu, Gelu,
                 NormalCdf, GeluDerivative, Softplus, LogSigmoid, EluPlusOne>;
using BinaryFunctions = FunctionList<Add, Subtract, Multiply, Divide, Maximum, Minimum>;

}  // namespace weft
