#pragma once
// Feature maps phi, with phi(q) . phi(k) in the place of e^{q . k}: the choice of phi makes the variant of
// linear attention.
//
//   identity  x
//   elu       elu(x) + 1                                        (Katharopoulos et al. 2020)
//   relu      max(x, 0)
//   taylor    phi(q) . phi(k) = 1 + s + s^2/2, s = q . k / sqrt(d)         (Based: Arora et al. 2024)
//   hedgehog  [softmax(W x), softmax(-W x)] over features, none below 1e-12, W learned a head and side
//             from the unit matrix (Zhang et al. 2024)
//   favor     e^{w_i . x - |x|^2 / 2} / sqrt(m), x scaled by d^{-1/4}: unbiased for e^{q . k / sqrt(d)} over
//             random w of orthogonal rows, drawn once and kept with the weights (Choromanski et al. 2021)
//   lln       e^{a x}, a fixed a head and side so that log weights vary as those of softmax do
//             (Nahshan et al. 2024, arXiv 2311.13541)
//
// favor and lln are exponentials. The features of a query are divided by their largest, against overflow; it
// is the same for every key, so a normaliser must cancel it again. The same holds for what divides all keys,
// the largest so far (running_max.h), for which key_exponents() gives the exponents alone.

#include "attention/mechanism.h"

namespace weft {

class FeatureMap {
 public:
  static std::vector<std::string> names();
  FeatureMap(std::string name, const Dimensions& dims, const ParameterScope& scope);

  int64_t size() const;                       // features of a head
  Variable queries(const Variable& x) const;  // (N, H, Dk) -> (N, H, size)
  Variable keys(const Variable& x) const;
  Variable key_exponents(const Variable& x) const;  // of favor and lln, wide
  bool needs_normaliser() const { return name_ == "favor" || name_ == "lln"; }

 private:
  Variable map(const Variable& x, const Parameter& own) const;
  Variable exponents(const Variable& x, const Parameter& own) const;

  std::string name_;
  Dimensions dims_;
  Parameter of_queries_, of_keys_;
};

// [1, x / d^(1/4), x_i x_j / sqrt(d) for i < j, x_i^2 / sqrt(2 d)]:
// x (N, H, D) -> (N, H, 1 + D + D (D + 1) / 2)
Variable taylor_features(const Variable& x);
// The same composed of basic ops, where there is no kernel, and for its test.
Variable taylor_features_by_ops(const Variable& x);

// rows x size, row-major: in each run of `size` rows they are orthogonal, with the lengths of normal vectors.
std::vector<double> orthogonal_rows(int64_t rows, int64_t size, uint32_t seed);

// The exponent a of queries and of keys of unit variance with which log sum_c e^{a (q_c + k_c)} has the
// variance of q . k / sqrt(d), which is 1: fitted to 2,500 x 2,500 normal samples for each d = 16, 32 .. 256,
// within 1 %. (Taking the sum of d log-normal terms as log-normal itself gives a third of the variance.)
//
// The authors' code (class LLNAttention) says what the paper's moment matching computes: with deviations s_q
// and s_k, a of queries is s / s_q and of keys s / s_k, where 2 A s^2 + B = s_q^2 s_k^2, the line A, B fitted
// to such samples once: A = 0.14855, B = -0.35487. At s_q = s_k = 1 that is 2.1355; ours is 2.099 for d = 64,
// and follows d. They measure s_q and s_k over the whole batch in every step, which a token may not see; here
// both are 1, as projections of normed tokens start.
double lln_exponent(int64_t size);

}  // namespace weft
