// Times the kernels of a decoding step as a graph runs them: each by itself, launched for every layer with
// weights and keys of its own, and all of a layer in turn, one by one and as a run
// (autograd/cuda/step_run.h), which have to agree to the bit; of softmax, Lightning, and every fourth
// softmax.
//   weft_lab_decode [batch tokens layers]...   of 1.3 billion weights

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "attention/steps.h"
#include "autograd/cuda/replay.h"
#include "autograd/device_times.h"
#include "autograd/draw.h"
#include "autograd/ops/few_rows.h"

using namespace weft;

namespace {

constexpr int64_t kWidth = 2048, kHeads = 16, kSize = 128, kInner = 5504, kVocab = 50304;

Tensor random(const Shape& shape, double scale, Dtype dtype = Dtype::bf16) {
  static uint32_t seed = 0;
  const Tensor x(shape, dtype, Device::cuda);
  draw(x, Spread::normal, scale, {++seed, 0, 0});
  return x;
}
Tensor weights(int64_t rows, int64_t columns) {
  return random({rows, columns}, 1 / std::sqrt(static_cast<double>(columns)));
}

struct Layer {
  Tensor qkv = weights(3 * kWidth, kWidth), out = weights(kWidth, kWidth), up = weights(2 * kInner, kWidth),
         down = weights(kWidth, kInner);
  std::vector<Tensor> caches, states;
  AddressTable addresses, state_addresses;
  Tensor table, state_table;
};

double rate = 0;  // of a copy

enum class Kind { softmax, lightning, hybrid };
bool has_keys(Kind kind, size_t layer) {
  return kind == Kind::softmax || (kind == Kind::hybrid && layer % 4 == 3);
}

void time(const std::string& name, int64_t count, double bytes, const std::function<void()>& f,
          bool as_runs = false) {
  f();
  cuda::Replay replay;
  replay.record(f, as_runs);
  std::vector<double> ms = device_times(Device::cuda, 12, [&](int64_t) { replay.run(); });
  std::sort(ms.begin(), ms.end());
  const double us = 1e3 * ms[ms.size() / 2] / static_cast<double>(count), floor = bytes / rate * 1e6;
  std::printf("  %s %.2f us %.0f %%", name.c_str(), us, 100 * floor / us);
  std::fflush(stdout);
}

class Step {
 public:
  Step(int64_t batch, int64_t tokens, int64_t layers)
      : batch_(batch), tokens_(tokens), all_(static_cast<size_t>(layers)) {
    std::vector<int32_t> at, number;
    for (int64_t m = 0; m < batch; ++m) {
      at.push_back(static_cast<int32_t>(tokens - 1 - m));
      number.push_back(static_cast<int32_t>(m));
    }
    position_ = from_ints(at, Device::cuda);
    document_ = from_ints(number, Device::cuda);
    for (Layer& layer : all_) {
      std::vector<void*> addresses, states;
      for (int64_t m = 0; m < batch; ++m) {
        for (int i = 0; i < 2; ++i) layer.caches.push_back(random({tokens, kHeads, kSize}, 1));
        for (int i = 0; i < 2; ++i) layer.caches.push_back(empty({tokens}, Dtype::i32, Device::cuda));
        for (size_t i = layer.caches.size() - 4; i < layer.caches.size(); ++i)
          addresses.push_back(layer.caches[i].raw());
        layer.states.push_back(random({kHeads, kSize, kSize}, 1, Dtype::f32));
        states.push_back(layer.states.back().raw());
      }
      layer.table = layer.addresses.of(addresses, 4, Device::cuda);
      layer.state_table = layer.state_addresses.of(states, 1, Device::cuda);
    }
    gain_ = full({kWidth}, 1, Dtype::f32, Device::cuda);
    head_gain_ = full({kSize}, 1, Dtype::f32, Device::cuda);
    decay_ = full({batch, kHeads}, -0.01, Dtype::f32, Device::cuda);
    x_ = random({batch, kWidth}, 1);
    h_ = random({batch, kInner}, 1);
    packed_ = random({batch, 3 * kWidth}, 1);
    norm_ = {.norm = true, .gain = gain_, .eps = 1e-6};
    gates_ = norm_;
    gates_.swiglu = true;
  }

  void time_kernels() {
    const auto each = [&](const auto& f) {
      return [this, f] {
        for (const Layer& l : all_) f(l);
      };
    };
    const auto layers = std::ssize(all_);
    time("qkv", layers, kQkv, each([&](const Layer& l) { few_rows_linear(x_, l.qkv, norm_); }));
    time("attention", layers, of_keys(), each([&](const Layer& l) { attend(l, packed_); }));
    time("recurrence", layers, of_states(), each([&](const Layer& l) { recur(l, packed_); }));
    time("out", layers, kOut, each([&](const Layer& l) { few_rows_linear(x_, l.out, {.residual = x_}); }));
    time("gate_up", layers, kUp, each([&](const Layer& l) { few_rows_linear(x_, l.up, gates_); }));
    time("down", layers, kDown, each([&](const Layer& l) { few_rows_linear(h_, l.down, {.residual = x_}); }));
    if (tokens_ > 2048) return;
    const Tensor head = weights(kVocab, kWidth);
    time("head", 4, 2.0 * static_cast<double>(head.numel()), [&] {
      for (int i = 0; i < 4; ++i) few_rows_linear(x_, head, norm_);
    });
  }
  void time_layers(Kind kind, bool as_runs) {
    const std::string names[] = {"softmax layer", "lightning layer", "layer of a hybrid"};
    double bytes = 0;
    for (size_t i = 0; i < all_.size(); ++i)
      bytes += kQkv + kOut + kUp + kDown + (has_keys(kind, i) ? of_keys() : of_states());
    time(
        names[static_cast<int>(kind)], std::ssize(all_), bytes / static_cast<double>(all_.size()),
        [&] { layers(kind); }, as_runs);
  }
  // All layers, run by a recording.
  std::vector<double> values(Kind kind, bool as_runs) {
    for (const Layer& layer : all_)
      for (size_t m = 0; m < layer.states.size(); ++m)
        draw(layer.states[m], Spread::normal, 1, {static_cast<uint32_t>(m), 1, 0});
    cuda::Replay replay;
    Tensor y;
    replay.record([&] { y = layers(kind); }, as_runs);
    replay.run();
    std::vector<double> out = to_values(y);
    for (size_t i = 0; i < all_.size(); ++i) {  // and what the layers keep
      const Layer& layer = all_[i];
      const Tensor kept =
          has_keys(kind, i) ? layer.caches[0].rows(tokens_ - 1, tokens_) : layer.states.back();
      for (const double v : to_values(kept)) out.push_back(v);
    }
    return out;
  }

 private:
  static constexpr double kQkv = 6.0 * kWidth * kWidth, kOut = 2.0 * kWidth * kWidth,
                          kUp = 4.0 * kInner * kWidth, kDown = 2.0 * kInner * kWidth;
  double of_keys() const { return 4.0 * static_cast<double>(batch_ * tokens_ * kWidth); }
  // Read and written.
  double of_states() const { return 8.0 * static_cast<double>(batch_ * kWidth * kSize); }

  Tensor part(const Tensor& qkv, int64_t i) const {
    return qkv.columns(i * kWidth, (i + 1) * kWidth).reshape({batch_, kHeads, kSize});
  }
  Tensor attend(const Layer& l, const Tensor& qkv) const {
    return attention_step({.scale = 0.1}, part(qkv, 0), part(qkv, 1), part(qkv, 2), position_, document_,
                          l.table, tokens_, 10000)[0];
  }
  Tensor recur(const Layer& l, const Tensor& qkv) const {
    return recurrent_step(part(qkv, 0), part(qkv, 1), part(qkv, 2), decay_, {}, l.state_table, 0.1);
  }
  Tensor layers(Kind kind) const {
    Tensor y = x_;
    for (size_t i = 0; i < all_.size(); ++i) {
      const Layer& l = all_[i];
      const bool softmax = has_keys(kind, i);
      const Tensor qkv = few_rows_linear(y, l.qkv, norm_),
                   o = (softmax ? attend(l, qkv) : recur(l, qkv)).reshape({batch_, kWidth});
      Around around{.residual = y};
      if (!softmax)
        around = {.norm = true, .norm_size = kSize, .gain = head_gain_, .eps = 1e-6, .residual = y};
      y = few_rows_linear(o, l.out, around);
      y = few_rows_linear(few_rows_linear(y, l.up, gates_), l.down, {.residual = y});
    }
    return y;
  }

  int64_t batch_, tokens_;
  std::vector<Layer> all_;
  Tensor position_, document_, gain_, head_gain_, decay_, x_, h_, packed_;
  Around norm_, gates_;
};

void run(int64_t batch, int64_t tokens, int64_t layers) {
  const NoTape pause;
  Step step(batch, tokens, layers);
  std::printf("B%d T%d, kernels:", static_cast<int>(batch), static_cast<int>(tokens));
  step.time_kernels();
  std::printf("\n");
  for (const Kind kind : {Kind::softmax, Kind::lightning, Kind::hybrid}) {
    std::printf("  one by one:");
    step.time_layers(kind, false);
    const std::vector<double> apart = step.values(kind, false);
    std::printf("; as runs:");
    step.time_layers(kind, true);
    const std::vector<double> together = step.values(kind, true);
    size_t other = 0;
    for (size_t i = 0; i < apart.size(); ++i) other += apart[i] != together[i];
    std::printf("; %zu of %zu numbers differ\n", other, apart.size());
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  use_device(Device::cuda);
  {
    const Tensor from = zeros({int64_t{1} << 28}, Dtype::f32, Device::cuda), to = empty_like(from);
    const std::vector<double> ms = device_times(Device::cuda, 10, [&](int64_t) { to.copy_from(from); });
    rate = 2.0 * static_cast<double>(from.bytes()) / (*std::min_element(ms.begin(), ms.end()) * 1e-3);
    std::printf("a copy: %.2f TB/s\n", rate * 1e-12);
  }
  for (int i = 1; i + 2 < argc; i += 3)
    run(std::atoll(argv[i]), std::atoll(argv[i + 1]), std::atoll(argv[i + 2]));
  return 0;
}
