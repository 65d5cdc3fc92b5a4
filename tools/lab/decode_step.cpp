// Times the kernels of a decoding step as a graph runs them: each by itself, launched for every layer with
// weights and keys of its own, and all five of a layer in turn.
//   weft_lab_decode [batch tokens [layers]]...   of 1.3 billion weights

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "attention/steps.h"
#include "autograd/cuda/replay.h"
#include "autograd/device_times.h"
#include "autograd/ops/few_rows.h"

using namespace weft;

namespace {

constexpr int64_t kWidth = 2048, kHeads = 16, kSize = 128, kInner = 5504, kVocab = 50304;

Tensor weights(int64_t rows, int64_t columns) {
  return full({rows, columns}, 0.01, Dtype::bf16, Device::cuda);
}

struct Layer {
  Tensor qkv = weights(3 * kWidth, kWidth), out = weights(kWidth, kWidth), up = weights(2 * kInner, kWidth),
         down = weights(kWidth, kInner);
  std::vector<Tensor> caches;
  AddressTable addresses;
  Tensor table;
};

double rate = 0;  // of a copy

void time(const std::string& name, int64_t count, double bytes, const std::function<void()>& f) {
  f();
  cuda::Replay replay;
  replay.record(f);
  std::vector<double> ms = device_times(Device::cuda, 12, [&](int64_t) { replay.run(); });
  std::sort(ms.begin(), ms.end());
  const double us = 1e3 * ms[ms.size() / 2] / static_cast<double>(count), floor = bytes / rate * 1e6;
  std::printf("  %s %.2f us %.0f %%", name.c_str(), us, 100 * floor / us);
  std::fflush(stdout);
}

void run(int64_t batch, int64_t tokens, int64_t layers) {
  const NoTape pause;
  std::vector<Layer> all(static_cast<size_t>(layers));
  std::vector<int32_t> at, number;
  for (int64_t m = 0; m < batch; ++m) {
    at.push_back(static_cast<int32_t>(tokens - 1));
    number.push_back(static_cast<int32_t>(m));
  }
  const Tensor position = from_ints(at, Device::cuda), document = from_ints(number, Device::cuda);
  for (Layer& layer : all) {
    std::vector<void*> addresses;
    for (int64_t m = 0; m < batch; ++m) {
      for (int i = 0; i < 2; ++i)
        layer.caches.push_back(full({tokens, kHeads, kSize}, 0.01, Dtype::bf16, Device::cuda));
      for (int i = 0; i < 2; ++i) layer.caches.push_back(empty({tokens}, Dtype::i32, Device::cuda));
      for (size_t i = layer.caches.size() - 4; i < layer.caches.size(); ++i)
        addresses.push_back(layer.caches[i].raw());
    }
    layer.table = layer.addresses.of(addresses, 4, Device::cuda);
  }
  const Tensor gain = full({kWidth}, 1, Dtype::f32, Device::cuda);
  const Tensor x = weights(batch, kWidth), h = weights(batch, kInner), packed = weights(batch, 3 * kWidth);
  const Around norm{.norm = true, .gain = gain, .eps = 1e-6};
  Around gates = norm;
  gates.swiglu = true;
  const auto attend = [&](const Layer& l, const Tensor& qkv, double turn) {
    const auto part = [&](int64_t i) {
      return qkv.columns(i * kWidth, (i + 1) * kWidth).reshape({batch, kHeads, kSize});
    };
    return attention_step({.scale = 0.1}, part(0), part(1), part(2), position, document, l.table, tokens,
                          turn)[0];
  };
  const auto each = [&](const auto& f) {
    return [&all, f] {
      for (const Layer& l : all) f(l);
    };
  };
  std::printf("B%d T%d:", static_cast<int>(batch), static_cast<int>(tokens));
  const auto megabytes = [](int64_t rows, int64_t columns) {
    return 2.0 * static_cast<double>(rows * columns);
  };
  const double of_qkv = megabytes(3 * kWidth, kWidth), of_out = megabytes(kWidth, kWidth),
               of_up = megabytes(2 * kInner, kWidth), of_down = megabytes(kWidth, kInner),
               of_keys = megabytes(batch * tokens, 2 * kWidth);
  time("qkv", layers, of_qkv, each([&](const Layer& l) { few_rows_linear(x, l.qkv, norm); }));
  time("attention", layers, of_keys, each([&](const Layer& l) { attend(l, packed, 10000); }));
  time("attention, no turn", layers, of_keys, each([&](const Layer& l) { attend(l, packed, 0); }));
  time("out", layers, of_out, each([&](const Layer& l) { few_rows_linear(x, l.out, {.residual = x}); }));
  time("gate_up", layers, of_up, each([&](const Layer& l) { few_rows_linear(x, l.up, gates); }));
  time("down", layers, of_down, each([&](const Layer& l) { few_rows_linear(h, l.down, {.residual = x}); }));
  const auto products = [&](const Tensor& in, const Layer& l, bool attention) {
    const Tensor qkv = few_rows_linear(in, l.qkv, norm);
    const Tensor o = attention ? attend(l, qkv, 10000).reshape({batch, kWidth}) : qkv.columns(0, kWidth);
    const Tensor y = few_rows_linear(o, l.out, {.residual = in});
    return few_rows_linear(few_rows_linear(y, l.up, gates), l.down, {.residual = y});
  };
  const double of_products = of_qkv + of_out + of_up + of_down;
  for (const bool attention : {false, true})
    time((attention ? "layer" : "products"), layers, of_products + (attention ? of_keys : 0), [&] {
      Tensor y = x;
      for (const Layer& l : all) y = products(y, l, attention);
    });
  if (tokens <= 2048) {
    const Tensor head = weights(kVocab, kWidth);
    time("head", 4, 2.0 * static_cast<double>(head.numel()), [&] {
      for (int i = 0; i < 4; ++i) few_rows_linear(x, head, norm);
    });
  }
  std::printf("\n");
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
