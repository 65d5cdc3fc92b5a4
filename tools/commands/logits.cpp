#include <memory>

#include "autograd/nearest_name.h"
#include "distributed/agree.h"
#include "distributed/environment.h"
#include "distributed/thread_comm.h"
#include "tools/commands.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "tools/rank_failure.h"
#include "tools/segments_flag.h"
#include "training/checkpoint/hash.h"
#include "training/checkpoint/safetensors.h"
#include "training/open_model.h"
#include "training/score.h"

namespace weft {
namespace {

// The file's ids as documents: each row one, or as many as `doc` says.
Batch read_batch(const SafetensorsFile& file, const std::string& in, int64_t vocab) {
  if (file.find("ids") == nullptr) throw Error(Exit::data, "no tensor ids", in, "give ids (B, T)");
  for (const SafetensorsEntry& e : file.entries())
    if (e.name != "ids" && e.name != "doc")
      throw Error(Exit::data, text("tensor ", shown(e.name), " is neither ids nor doc"), in,
                  suggest_name(e.name, {"ids", "doc"}, "tensors"));
  const OwnedArray ids = file.read("ids", Dtype::i32);
  if (ids.shape.size() != 2)
    throw Error(Exit::data,
                text("ids has shape ", Shape(ids.shape.begin(), ids.shape.end()), ", (B, T) is needed"), in);
  const int64_t count = ids.shape[0] * ids.shape[1];
  if (count == 0) throw Error(Exit::data, "ids holds no token", in, "give at least one");
  std::vector<int64_t> doc(static_cast<size_t>(count), 0);  // of each token
  if (const SafetensorsEntry* entry = file.find("doc")) {
    if (entry->shape != ids.shape)
      throw Error(Exit::data,
                  text("doc has shape ", Shape(entry->shape.begin(), entry->shape.end()), ", ids ",
                       Shape(ids.shape.begin(), ids.shape.end())),
                  in);
    doc = file.integers(*entry);
  }
  const auto starts_row = [&](int64_t i) { return i % ids.shape[1] == 0; };
  for (int64_t i = 1; i < count; ++i)
    if (!starts_row(i) && doc[i] < doc[i - 1])
      throw Error(Exit::data, text("doc falls at token ", i % ids.shape[1], " of row ", i / ids.shape[1]), in,
                  "number the documents of a row in order");
  Batch batch;
  batch.tokens.assign(ids.as<int32_t>(), ids.as<int32_t>() + count);
  for (const int32_t id : batch.tokens)  // here, where all ranks see it
    if (id < 0 || id >= vocab)
      throw Error(Exit::data, text("ids has ", id, ", the model's vocabulary ", vocab, " tokens"), in);
  batch.targets.assign(batch.tokens.size(), -1);
  for (int64_t i = 0; i < count; ++i) {
    if (starts_row(i) || doc[i] != doc[i - 1])
      batch.offsets.push_back(i);
    else
      batch.targets[static_cast<size_t>(i - 1)] = batch.tokens[static_cast<size_t>(i)];
  }
  batch.offsets.push_back(count);
  return batch;
}

// The same for the same tokens in the same documents.
std::string described(const Batch& batch) {
  Hash128 hash;
  hash.add(batch.tokens.data(), batch.tokens.size() * sizeof(batch.tokens[0]));
  hash.add(batch.offsets.data(), batch.offsets.size() * sizeof(batch.offsets[0]));
  return text(batch.tokens.size(), " in ", batch.offsets.size() - 1, " documents (", hash.hex(), ")");
}

void write_scores(const Scores& scores, const std::vector<int64_t>& batch, bool hidden,
                  const std::string& out) {
  std::vector<Tensor> kept;
  std::vector<NamedArray> arrays;
  const auto add = [&](const std::string& name, const Tensor& x) {
    std::vector<int64_t> shape = batch;
    shape.insert(shape.end(), x.shape().begin() + 1, x.shape().end());
    kept.push_back(x.contiguous().to(Device::cpu));
    arrays.push_back({name, x.dtype(), shape, kept.back().raw()});
  };
  add("logits", scores.logits.to(Dtype::f32));
  add("nll", scores.nll.to(Dtype::f32));
  for (size_t i = 0; hidden && i < scores.hidden.size(); ++i) add(text("hidden.", i), scores.hidden[i]);
  write_safetensors(out, arrays, {{"format", "pt"}, {"weft", "logits/1"}});
}

struct LogitsFlags {
  std::string model, in, out, dtype = "f32", segments;
  bool hidden = false, json = false;
  Dtype type = Dtype::f32;
  SegmentsFlag split;
};

void score_file(const LogitsFlags& said, const Launched& launched, Communicator* world) {
  require_same_program(world);
  const OpenModel m = open_model(said.model, said.type);
  if (launched.rank == 0) print_warnings(m.warnings);
  const SafetensorsFile file(said.in);
  const Batch batch = read_batch(file, said.in, m.model->config().vocab);
  // While a run goes on, ranks may find different checkpoints of it.
  require_same(world, "the model", text("step ", m.step, " (", m.weights_hash, ")"));
  require_same(world, "the tokens", described(batch), Exit::data);
  require_same(world, "the flags", text("--dtype ", said.dtype, " --segments ", said.segments), Exit::usage);
  const auto score_on = [&](Communicator* ranks) {
    const Scores scores = score(*m.model, batch, ranks, said.split.plan, said.split.strategy);
    if (rank_of(ranks) == 0) write_scores(scores, file.at("ids").shape, said.hidden, said.out);
  };
  if (world == nullptr && said.split.ranks > 1)
    run_ranks(said.split.ranks, [&](Communicator& ranks) { score_on(&ranks); });
  else
    score_on(world);
  if (said.json && launched.rank == 0) print("{\"weft\":\"logits/1\",\"exit\":0}\n");
}

}  // namespace

int run_logits(const Words& words) {
  LogitsFlags said;
  std::string device;
  Flags flags(
      "logits", "MODEL",
      "Computes logits and losses of token ids with a trained model; under mpirun on all ranks together.");
  flags.add("--in", said.in, "FILE", "safetensors with ids (B, T) i32 or i64, and optionally doc (B, T)",
            {.required = true});
  flags.add("--out", said.out, "FILE", "safetensors: logits (B, T, V), nll (B, T)", {.required = true});
  flags.add("--hidden", said.hidden, "also write hidden.0 ... hidden.L (B, T, C), 0 = embedding");
  flags.add("--dtype", said.dtype, "f64|f32|bf16", "type to compute in; default f32");
  flags.add("--device", device, "cpu|cuda", kDeviceHelp);
  flags.add("--segments", said.segments, kSegmentsUnit,
            "split over RANKS ranks: threads, or under mpirun its ranks");
  flags.add("--json", said.json, "one line of JSON, logits/1");
  if (!flags.parse(words)) return 0;
  said.model = flags.arguments()[0];
  said.type = flag_choice<Dtype>("--dtype", said.dtype,
                                 {{"f64", Dtype::f64}, {"f32", Dtype::f32}, {"bf16", Dtype::bf16}});
  compute_on(device);
  said.split = parse_segments(said.segments);
  const Launched launched = detect_launch();
  if (launched.size > 1 && said.split.ranks > 0 && said.split.ranks != launched.size)
    throw Error(
        Exit::usage, text("--segments needs ", said.split.ranks, " ranks, ", launched.size, " were started"),
        "--segments", text("start ", said.split.ranks, ", or leave out mpirun, so that ranks are threads"));
  if (launched.size == 1) {
    score_file(said, launched, nullptr);
    return 0;
  }
  std::unique_ptr<Communicator> world = world_communicator(launched);
  leave_word(*world, "", "logits/1", said.json);
  try {
    score_file(said, launched, world.get());
    world.reset();
    return 0;
  } catch (const std::exception& e) {
    return end_rank(world.get(), e, said.json ? "logits/1" : "");
  }
}

}  // namespace weft
