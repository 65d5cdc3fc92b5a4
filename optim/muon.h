#pragma once
// Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024). Each matrix moves by
// its Nesterov momentum made nearly orthogonal. With the gradient g and learning rate r of a step, for a
// matrix of `rows` outputs and `columns` inputs:
//   m = beta m + (1 - beta) g,   u = beta m + (1 - beta) g
//   w = w (1 - r weight_decay) - r sqrt(max(1, rows / columns)) orthogonalize(u)
// The root makes one rate serve all shapes: the update changes outputs by about r, whatever the shape.
// Embeddings, output heads and vectors belong to another optimizer (Split).

#include "optim/optimizer.h"

namespace weft {

struct MuonConfig {
  double lr = 0.02;
  double momentum = 0.95;
  double weight_decay = 0.1;
};

class Muon : public Optimizer {
 public:
  // Ranges of matrix groups, none of which cuts a parameter. A fused projection is as many matrices as it
  // has parts; a parameter of more than two dimensions is one matrix for each place of the leading ones.
  Muon(const MuonConfig& config, ParameterStore& store, Ranges owned);
  std::vector<StateTensor> state() const override { return momentum_.tensors(); }  // muon.momentum

 protected:
  void prepare(StepState& s) const override;
  void apply(const Range& range, const StepState& s) override;

 private:
  struct Matrix {
    int64_t offset, rows, columns;  // offset: elements into the group
  };
  static std::vector<Matrix> matrices_of(const ParameterEntry& entry);
  void update_matrix(const Matrix& matrix, const Range& range);

  MuonConfig config_;
  RangeState momentum_;
  Tensor factors_;  // see below
};

// The polar factor U V^T of x = U S V^T, nearly: five steps of a Newton-Schulz iteration with the paper's
// quintic, after which singular values lie in [0.68, 1.21]; those below 0.002 of the norm of x may stay
// smaller. Zero stays zero.  x (rows, columns), f32 or f64, dense
Tensor orthogonalize(const Tensor& x);

namespace cpu {
// What changes from step to step, factors (3) f64: the gradient's scale, 1 - r weight_decay, r.
// m = beta m + (1 - beta) scale g;  u = beta m + (1 - beta) scale g.  All (n).
void muon_momentum(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta,
                   const Tensor& factors);
// y = x / max(sqrt(squares[0]), 1e-30), squares (1) f64.  x, y (n)
void muon_normalize(const Tensor& y, const Tensor& x, const Tensor& squares);
// w = (1 - r weight_decay) w - r shape u, and the working copy, which may be the master itself.  All (n).
void muon_apply(const Tensor& master, const Tensor& working, const Tensor& u, double shape,
                const Tensor& factors);
}  // namespace cpu
namespace cuda {
void muon_momentum(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta,
                   const Tensor& factors);
void muon_normalize(const Tensor& y, const Tensor& x, const Tensor& squares);
void muon_apply(const Tensor& master, const Tensor& working, const Tensor& u, double shape,
                const Tensor& factors);
}  // namespace cuda

}  // namespace weft
