#include "training/recipe/recipe.h"

#include <cstdint>

namespace weft {
namespace {

constexpr double kMaxSeed = UINT32_MAX;  // Philox takes 32 bits: a larger seed would be another's double

}  // namespace

void Recipe::fields(FieldVisitor& f) {
  f("version", version, "format of this file", {.min = 1, .max = 1});
  f("run", run, "folder the run writes to; empty: runs/ and the name of the recipe");
  f("init", init, "run whose last weights this one starts from; what it lacks starts as always",
    {.fixed = true});
  f("seed", seed, "starts the weights, the data order and every random draw",
    {.min = 0, .max = kMaxSeed, .fixed = true});
  f("steps", steps, "optimizer steps in the whole run", {.unit = "steps", .min = 0});
  f("batch_tokens", batch_tokens, "tokens in one step, of all ranks together; a multiple of the context",
    {.unit = "tokens", .min = 1, .max = 1e12, .fixed = true});
  f("context", context, "length of a training sequence",
    {.unit = "tokens", .min = 1, .max = 1e12, .fixed = true});
  f("micro_tokens", micro_tokens, "tokens a rank handles at once; 0: what fits in memory",
    {.unit = "tokens", .min = 0});
  f("precision", precision, "type of activations and matrices; masters and reductions stay f32",
    {.choices = {"bf16", "f32", "f64"}, .fixed = true});
  f("determinism", determinism,
    "run: the same bits whenever the world size is the same; off: the fastest kernels, so that equal runs "
    "may differ in their last bits on a GPU",
    {.choices = {"off", "run"}});
  f("cuda_graphs", cuda_graphs,
    "training steps kept as CUDA graphs on a GPU, one for each bucket of (documents, longest document); the "
    "bits are the same without; 0: none",
    {.unit = "graphs", .min = 0, .max = 1024});
  f.section("model", model, "shape of the network");
  f.section("optim", optim, "optimizer and learning rate");
  f.section("data", data, "what is read");
  f.section("mesh", mesh, "how the ranks divide the work");
  f.section("checkpoint", checkpoint, "saving and resuming");
  f.section("eval", eval, "validation while training");
  f.section("sample", sample, "text drawn while training");
  f.section("numerics", numerics, "what happens on a step that is not finite, or a spike");
  f.section("log", log, "what is reported");
}

void Recipe::Model::fields(FieldVisitor& f) {
  f("layers", layers, "mechanism of each layer from the input up; NAME*3 stands for three", {.fixed = true});
  f("width", width, "features of the residual stream",
    {.unit = "features", .min = 1, .max = 1e6, .fixed = true});
  f("heads", heads, "heads of the queries", {.unit = "heads", .min = 1, .max = 1e5, .fixed = true});
  f("kv_heads", kv_heads, "heads of keys and values, a divisor of heads; 0: as many as heads",
    {.unit = "heads", .min = 0, .fixed = true});
  f("head_size", head_size, "features of a head; 0: width / heads",
    {.unit = "features", .min = 0, .max = 1e5, .fixed = true});
  f("ffn", ffn, "width of the feed-forward layer; 0: derived from width and ffn_kind",
    {.unit = "features", .min = 0, .max = 1e7, .fixed = true});
  f("ffn_kind", ffn_kind, "form of the feed-forward layer",
    {.choices = {"swiglu", "sglu", "gelu"}, .fixed = true});
  f("norm", norm, "normalisation before each layer", {.choices = {"rms", "layer", "srms"}, .fixed = true});
  f("norm_eps", norm_eps, "added to the variance", {.min = 0, .above_min = true, .fixed = true});
  f("position", position, "how softmax layers see positions",
    {.choices = {"rope", "alibi", "none"}, .fixed = true});
  f("rope_theta", rope_theta, "base of the rotary frequencies", {.min = 1, .above_min = true, .fixed = true});
  f("qk_norm", qk_norm, "normalise queries and keys of each head", {.fixed = true});
  f("tied", tied, "the output projection is the embedding", {.fixed = true});
  f("scale_embedding", scale_embedding, "multiply the embedding by sqrt(width)", {.fixed = true});
  f("vocab", vocab, "rows of the embedding; 0: the tokenizer's",
    {.unit = "tokens", .min = 0, .max = 1e8, .fixed = true});
  f("short_conv", short_conv, "width of the causal convolution on q, k and v; 0: none",
    {.unit = "tokens", .min = 0, .max = 64, .fixed = true});
  f("checkpointing", checkpointing, "activations computed again in backward instead of kept",
    {.choices = {"none", "attention", "ffn", "block"}});
  f("mechanisms", mechanisms, "attributes of mechanisms: {gla: {chunk: 64}}; `weft help ID` lists them",
    {.fixed = true});
}

void Recipe::Optim::fields(FieldVisitor& f) {
  f("kind", kind, "muon: Muon for matrices of the blocks, AdamW for the rest",
    {.choices = {"adamw", "muon"}, .fixed = true});
  f("lr", lr, "highest learning rate", {.min = 0});
  f("min_lr", min_lr, "learning rate at the end of the schedule, not above lr", {.min = 0});
  f("schedule", schedule, "wsd: warm up, stay, decay", {.choices = {"cosine", "wsd", "constant"}});
  f("warmup", warmup, "steps from zero to lr", {.unit = "steps", .min = 0});
  f("decay", decay, "last steps of wsd, down to min_lr", {.unit = "steps", .min = 0});
  f("beta1", beta1, "decay of the gradient's running mean", {.min = 0, .max = 0.999999});
  f("beta2", beta2, "decay of the squared gradient's running mean", {.min = 0, .max = 0.999999});
  f("eps", eps, "added to the root of the second moment", {.min = 0, .above_min = true});
  f("weight_decay", weight_decay, "decoupled, times the learning rate; matrices only", {.min = 0});
  f("clip", clip, "largest norm of the whole gradient; 0: no clipping", {.min = 0});
  f("ema", ema, "decay of the running mean of the weights; 0: none", {.min = 0, .max = 0.9999999});
  f("muon_lr", muon_lr, "highest learning rate of Muon's matrices", {.min = 0});
  f("muon_momentum", muon_momentum, "Muon's momentum", {.min = 0, .max = 0.999999});
}

void Recipe::Source::fields(FieldVisitor& f) {
  f("path", path, "file, folder or glob");
  f("weight", weight, "share of the tokens relative to the other sources", {.min = 0, .above_min = true});
}

void Recipe::Data::fields(FieldVisitor& f) {
  f("task", task,
    "made examples to learn from instead of text: mqar, or \"mqar length=64 pairs=4\", or a list of such, "
    "each "
    "with a weight=W if wanted; `weft ls` lists the tasks",
    {.fixed = true});
  f("train", train, "text to learn from: files, folders or globs, with weights if wanted", {.fixed = true});
  f("val", val, "text to validate on, or the share of the training text held out for it; 0: none",
    {.fixed = true});
  f("tokenizer", tokenizer, "bytes, or the path of a tokenizer file or folder", {.fixed = true});
  f("shuffle", shuffle, "read sequences in a random order that the seed fixes", {.fixed = true});
  f("prefetch", prefetch, "batches read ahead", {.unit = "batches", .min = 1, .max = 1024});
  f("skip_bad", skip_bad,
    "leave out, and count, documents with a token outside the vocabulary and lines that are not JSON",
    {.fixed = true});
}

void Recipe::Mesh::fields(FieldVisitor& f) {
  f("dp", dp, "ranks that share the batch; 0: world / cp", {.unit = "ranks", .min = 0, .max = 1e6});
  f("cp", cp, "ranks that share a sequence; falls to the largest divisor of the world below it",
    {.unit = "ranks", .min = 1, .max = 1e6});
  f("layout", layout, "how a sequence is cut among ranks; auto: what the mechanisms allow and balances best",
    {.choices = {"auto", "contiguous", "zigzag", "balanced"}});
  f("strategy", strategy, "what crosses ranks; native: what each mechanism needs",
    {.choices = {"native", "gather", "ring", "heads"}});
}

void Recipe::Checkpoint::fields(FieldVisitor& f) {
  f("every", every, "steps between checkpoints; 0: only after the last step", {.unit = "steps", .min = 0});
  f("keep", keep, "newest checkpoints kept; 0: all", {.unit = "checkpoints", .min = 0});
  f("strict", strict, "refuse to fall back when the newest checkpoint is damaged");
}

void Recipe::Eval::fields(FieldVisitor& f) {
  f("every", every, "steps between validations; 0: never", {.unit = "steps", .min = 0});
  f("batches", batches, "batches of one validation", {.unit = "batches", .min = 1});
  f("grid", grid,
    "what `weft eval` scores a run on where it is not told: tasks, with several values of a setting as a,b");
}

void Recipe::Sample::fields(FieldVisitor& f) {
  f("every", every, "steps between samples; 0: only after the last step", {.unit = "steps", .min = 0});
  f("tokens", tokens, "length of a sample; 0: no samples", {.unit = "tokens", .min = 0});
  f("prompt", prompt, "text the sample goes on from");
  f("temperature", temperature, "divides the logits; 0: always the likeliest token", {.min = 0});
  f("top_k", top_k, "draw from the likeliest tokens only; 0: from all", {.unit = "tokens", .min = 0});
  f("seed", seed, "of the draws", {.min = 0, .max = kMaxSeed});
}

void Recipe::Numerics::fields(FieldVisitor& f) {
  f("max_skips", max_skips, "skipped steps within the window before the run goes back",
    {.unit = "steps", .min = 0});
  f("window", window, "steps that skips and the gradient norm's statistics look back on",
    {.unit = "steps", .min = 1});
  f("spike_zscore", spike_zscore, "skip a step whose gradient norm lies this far out; 0: never",
    {.unit = "standard deviations", .min = 0});
  f("rewind", rewind, "times the run may go back to its last checkpoint before it gives up", {.min = 0});
}

void Recipe::Log::fields(FieldVisitor& f) {
  f("every", every, "steps between lines", {.unit = "steps", .min = 1});
  f("tensorboard", tensorboard, "write TensorBoard events too");
}

std::string Recipe::where(const std::string& key) const {
  const auto found = places.find(key);
  return found == places.end() ? key + " (default)" : found->second.text();
}

}  // namespace weft
