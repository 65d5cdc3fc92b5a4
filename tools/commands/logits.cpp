#include "autograd/ops/arrange.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "tools/commands.h"
#include "tools/flags.h"
#include "training/checkpoint/safetensors.h"
#include "training/open_model.h"

namespace weft {
namespace {

std::optional<Dtype> dtype_of_flag(const std::string& name) {
  if (name == "f64") return Dtype::f64;
  if (name == "f32") return Dtype::f32;
  if (name == "bf16") return Dtype::bf16;
  throw Error(Exit::usage, text("--dtype is f64, f32 or bf16, got ", name), "--dtype");
}

}  // namespace

int run_logits(const Words& words) {
  std::string in, out, dtype = "f32";
  bool hidden = false;
  Flags flags("logits", "MODEL", "Scores token ids with a trained model.");
  flags.add("--in", in, "FILE", "safetensors with ids (B, T) i32 or i64, and optionally doc (B, T)",
            {.required = true});
  flags.add("--out", out, "FILE", "safetensors: logits (B, T, V), nll (B, T)", {.required = true});
  flags.add("--hidden", hidden, "also hidden.0 ... hidden.L (B, T, C), 0 = embedding");
  flags.add("--dtype", dtype, "f64|f32|bf16", "what to compute in");
  if (!flags.parse(words)) return 0;
  const OpenModel m = open_model(flags.arguments()[0], dtype_of_flag(dtype));
  const SafetensorsFile file(in);
  const auto read_ids = [&](const char* name) {
    if (file.find(name) == nullptr) throw Error(Exit::data, text("no tensor ", name), in, "give ids (B, T)");
    return file.read(name, Dtype::i32);
  };
  const OwnedArray ids = read_ids("ids");
  if (ids.shape.size() != 2)
    throw Error(Exit::data,
                text("ids has shape ", Shape(ids.shape.begin(), ids.shape.end()), ", (B, T) is needed"), in);
  const int64_t b = ids.shape[0], t = ids.shape[1];
  if (b * t == 0) throw Error(Exit::data, "ids holds no token", in, "give at least one");
  // Each row is a document, or as many as `doc` says.
  std::vector<int64_t> lengths;
  std::vector<int32_t> tokens(ids.as<int32_t>(), ids.as<int32_t>() + b * t), targets(tokens.size(), -1);
  std::optional<OwnedArray> doc;
  if (file.find("doc") != nullptr) {
    doc.emplace(read_ids("doc"));
    if (doc->shape != ids.shape)
      throw Error(Exit::data,
                  text("doc has shape ", Shape(doc->shape.begin(), doc->shape.end()), ", ids ",
                       Shape(ids.shape.begin(), ids.shape.end())),
                  in);
  }
  for (int64_t i = 0; i < b * t; ++i) {
    const bool starts = i % t == 0 || (doc && doc->as<int32_t>()[i] != doc->as<int32_t>()[i - 1]);
    if (starts) lengths.push_back(0);
    ++lengths.back();
    if (!starts) targets[static_cast<size_t>(i - 1)] = tokens[static_cast<size_t>(i)];
  }
  const Layout layout = whole_documents(lengths);
  LocalCrossings crossings;
  std::vector<Variable> states;
  const Tensor h = m.model->hidden(from_ints(tokens), layout, crossings, nullptr, &states);
  const Tensor logits = m.model->logits(h).to(Dtype::f32);
  const Tensor nll =
      projected_cross_entropy(h, m.model->output_weight(), from_ints(targets)).nll.to(Dtype::f32);
  std::vector<Tensor> kept;
  std::vector<NamedArray> arrays{{"logits", Dtype::f32, {b, t, logits.dim(1)}, logits.raw()},
                                 {"nll", Dtype::f32, {b, t}, nll.raw()}};
  for (size_t i = 0; hidden && i < states.size(); ++i) {
    kept.push_back(states[i].value().contiguous());
    arrays.push_back(
        {text("hidden.", i), kept.back().dtype(), {b, t, kept.back().dim(1)}, kept.back().raw()});
  }
  write_safetensors(out, arrays, {{"format", "pt"}, {"weft", "logits/1"}});
  return 0;
}

}  // namespace weft
