#pragma once
// Learned tensors. A Parameter is a handle into a ParameterStore; it is no tape slot: any tape may use it,
// and its gradient goes straight to the store, so a nested tape (checkpointing, a probe) can neither lose nor
// misroute one.
//
// The store keeps, group by group, flat buffers with equal offsets: master (f32), working (the type the model
// computes in) and gradient (f32). Optimizers act on ranges of them.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/philox.h"
#include "autograd/tensor.h"

namespace weft {

// How a parameter is first filled. normal: mean 0, deviation `scale`; uniform: [-scale, scale); constant:
// `scale`; values: given elements.
struct Initializer {
  enum class Kind { normal, uniform, constant, values } kind = Kind::constant;
  double scale = 0;
  std::vector<double> values = {};

  static Initializer normal(double deviation) { return {Kind::normal, deviation, {}}; }
  static Initializer uniform(double bound) { return {Kind::uniform, bound, {}}; }
  static Initializer constant(double value) { return {Kind::constant, value, {}}; }
  static Initializer from(std::vector<double> values) { return {Kind::values, 0, std::move(values)}; }
};

// What an optimizer needs to know. matrix: a 2-D projection (Muon, weight decay, bf16); embedding: rows
// looked up (weight decay, bf16); vector: gains, decays, gates, biases (no weight decay, always f32, since
// 0.99999 is 1 in bf16).
enum class ParameterKind : uint8_t { matrix, embedding, vector };

struct ParameterInfo {
  std::string name;  // dotted: blocks.3.attention.query.weight
  Shape shape;
  ParameterKind kind = ParameterKind::matrix;
  Initializer init = {};
  std::vector<int64_t> parts = {};  // a fused projection: rows of each part, in order (Muon sees the parts)
  bool trainable = true;
};

struct ParameterEntry {
  ParameterInfo info;
  int group = -1;
  int64_t offset = 0;  // elements into the group's buffers
  Tensor master, working, gradient;
  bool written = false;  // a gradient arrived in this step
};

class Parameter {
 public:
  Parameter() = default;
  explicit Parameter(ParameterEntry* entry) : entry_(entry) {}
  bool defined() const { return entry_ != nullptr; }
  ParameterEntry& operator*() const { return *entry_; }
  ParameterEntry* operator->() const { return entry_; }

 private:
  ParameterEntry* entry_ = nullptr;
};

// One flat run of parameters of equal kind and trainability.
struct ParameterGroup {
  ParameterKind kind;
  bool trainable;
  std::vector<ParameterEntry*> entries;
  Tensor master, working, gradient;  // (numel)
};

class ParameterStore {
 public:
  // precision: the working type of matrices and embeddings. f64 makes everything f64 (gradient checks).
  explicit ParameterStore(Dtype precision = Dtype::f32, Device device = default_device(), uint32_t seed = 0)
      : precision_(precision), device_(device), seed_(seed) {}
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // Before commit(). Names are unique.
  Parameter declare(ParameterInfo info);
  // Lays the groups out, allocates, and initialises every parameter from (seed, its name): the values depend
  // neither on the order of declaration nor on the device.
  void commit();

  // Gradients of a step: after begin_step() the first writer of a gradient overwrites it, later ones add.
  void begin_step();
  // Zeroes the gradients nobody wrote in this step and returns the names of those parameters.
  std::vector<std::string> finish_step();
  // Rounds the masters into the working copies again, after an update or a load.
  void refresh_working();

  Parameter find(const std::string& name) const;  // undefined if absent
  const std::vector<std::unique_ptr<ParameterEntry>>& entries() const { return entries_; }
  std::vector<ParameterGroup>& groups() { return groups_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  int64_t numel() const;
  Dtype precision() const { return precision_; }
  Device device() const { return device_; }

 private:
  Dtype precision_;
  Device device_;
  uint32_t seed_;
  std::vector<std::unique_ptr<ParameterEntry>> entries_;
  std::vector<ParameterGroup> groups_;
};

}  // namespace weft
