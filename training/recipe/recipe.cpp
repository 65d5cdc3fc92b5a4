#include "training/recipe/recipe.h"

#include <cstdint>

namespace weft {
namespace {

constexpr double kMaxSeed = UINT32_MAX;  // Philox takes 32 bits: a larger seed would be another's double

}  // namespace

void Recipe::fields(FieldVisitor& f) {
  f("version", version, "version of the recipe format", {.min = 1, .max = 1});
  f("run", run, "folder the run writes to; empty: runs/ and the name of the recipe");
  f("init", init,
    "run whose last weights this one starts from, or one of its checkpoints (RUN/checkpoints/step-N); "
    "parameters that it lacks are initialised as usual",
    {.fixed = true});
  f("seed", seed, "seed of the initial weights, the data order and every random draw",
    {.min = 0, .max = kMaxSeed, .fixed = true});
  f("steps", steps, "optimizer steps in the whole run", {.unit = "steps", .min = 0});
  f("batch_tokens", batch_tokens, "tokens in one step, over all ranks together; a multiple of the context",
    {.unit = "tokens", .min = 1, .max = 1e12, .fixed = true});
  f("context", context, "length of a training sequence",
    {.unit = "tokens", .min = 1, .max = 1e9, .fixed = true});
  f("micro_tokens", micro_tokens, "tokens that a rank processes at once, in whole samples; 0: 4096",
    {.unit = "tokens", .min = 0});
  f("precision", precision, "type of activations and matrices; master weights and reductions stay f32",
    {.choices = {"bf16", "f32", "f64"}, .fixed = true});
  f("determinism", determinism,
    "run: the same bits for the same number of ranks; off: the fastest kernels, with which equal runs may "
    "differ in their last bits on a GPU",
    {.choices = {"off", "run"}});
  f("cuda_graphs", cuda_graphs,
    "training steps kept as CUDA graphs on a GPU, one for each bucket of (documents, longest document); "
    "the bits are the same with and without; 0: none",
    {.unit = "graphs", .min = 0, .max = 1024});
  f.section("model", model, "shape of the network");
  f.section("optim", optim, "optimizer and learning rate");
  f.section("data", data, "what the run reads");
  f.section("mesh", mesh, "how the ranks divide the work");
  f.section("checkpoint", checkpoint, "saving and resuming");
  f.section("eval", eval, "validation while training");
  f.section("sample", sample, "text generated while training");
  f.section("numerics", numerics, "what happens when a step is not finite or the gradient spikes");
  f.section("log", log, "what the run reports");
}

void Recipe::Model::fields(FieldVisitor& f) {
  f("layers", layers, "mechanism of each layer, from the input up; NAME*3 means three layers",
    {.fixed = true});
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
  f("norm_eps", norm_eps, "epsilon added to the variance", {.min = 0, .above_min = true, .fixed = true});
  f("position", position, "how softmax layers encode positions",
    {.choices = {"rope", "alibi", "none"}, .fixed = true});
  f("rope_theta", rope_theta, "base of the rotary frequencies", {.min = 1, .above_min = true, .fixed = true});
  f("qk_norm", qk_norm, "normalise queries and keys of each head, in mechanisms that have this attribute",
    {.fixed = true});
  f("tied", tied, "use the embedding as the output projection", {.fixed = true});
  f("scale_embedding", scale_embedding, "multiply the embedding by sqrt(width)", {.fixed = true});
  f("vocab", vocab, "rows of the embedding; 0: the tokenizer's",
    {.unit = "tokens", .min = 0, .max = 1e8, .fixed = true});
  f("short_conv", short_conv,
    "width of the causal convolution on q, k and v, in mechanisms that take them from their layer; 0: none",
    {.unit = "tokens", .min = 0, .max = 64, .fixed = true});
  f("checkpointing", checkpointing, "what is computed again in backward instead of kept in memory",
    {.choices = {"none", "attention", "ffn", "block"}});
  f("mechanisms", mechanisms, "attributes of mechanisms, as in {gla: {chunk: 64}}; `weft help ID` lists them",
    {.fixed = true});
}

void Recipe::Optim::fields(FieldVisitor& f) {
  f("kind", kind, "muon: Muon for the matrices of the blocks, AdamW for the rest",
    {.choices = {"adamw", "muon"}, .fixed = true});
  f("lr", lr, "highest learning rate", {.min = 0});
  f("min_lr", min_lr, "learning rate at the end of cosine and wsd, not above lr", {.min = 0});
  f("schedule", schedule, "wsd: warm up, stay constant, decay", {.choices = {"cosine", "wsd", "constant"}});
  f("warmup", warmup, "steps from zero to lr", {.unit = "steps", .min = 0});
  f("decay", decay, "steps at the end in which wsd falls to min_lr", {.unit = "steps", .min = 0});
  f("beta1", beta1, "decay of the gradient's running mean", {.min = 0, .max = 0.999999});
  f("beta2", beta2, "decay of the squared gradient's running mean", {.min = 0, .max = 0.999999});
  f("eps", eps, "epsilon added to the root of the second moment", {.min = 0, .above_min = true});
  f("weight_decay", weight_decay, "decoupled weight decay, times the learning rate; matrices only",
    {.min = 0});
  f("clip", clip, "largest norm of the whole gradient; 0: no clipping", {.min = 0});
  f("ema", ema, "decay of the running mean of the weights; 0: none; a resumed run may stop it, not start it",
    {.min = 0, .max = 0.9999999});
  f("muon_lr", muon_lr, "highest learning rate of Muon's matrices", {.min = 0});
  f("muon_momentum", muon_momentum, "Muon's momentum", {.min = 0, .max = 0.999999});
}

void Recipe::Source::fields(FieldVisitor& f) {
  f("path", path, "file, folder or glob");
  f("weight", weight, "share of the tokens relative to the other sources", {.min = 0, .above_min = true});
}

void Recipe::Data::fields(FieldVisitor& f) {
  f("task", task,
    "synthetic examples instead of text: mqar, or \"mqar length=64 pairs=4\", or a list of such, each with "
    "weight=W if wanted; `weft ls` lists the tasks",
    {.fixed = true});
  f("train", train,
    "training text or tokens: files, folders or globs, with weights if wanted; docs/contract.md has the "
    "formats",
    {.fixed = true});
  f("val", val, "validation text, or the share of the training text to hold out for it; 0: none",
    {.fixed = true});
  f("tokenizer", tokenizer, "bytes (no tokenizer), or the path of a tokenizer file or folder",
    {.fixed = true});
  f("shuffle", shuffle, "read sequences in a random order, determined by the seed", {.fixed = true});
  f("prefetch", prefetch, "batches read ahead", {.unit = "batches", .min = 1, .max = 1024});
  f("skip_bad", skip_bad,
    "skip and count documents with a token outside the vocabulary, and lines that are not JSON",
    {.fixed = true});
}

void Recipe::Mesh::fields(FieldVisitor& f) {
  f("dp", dp, "groups of ranks that share the batch; 0: ranks / cp", {.unit = "ranks", .min = 0, .max = 1e6});
  f("cp", cp,
    "ranks that share a sequence; if it does not divide the number of ranks, the next smaller divisor",
    {.unit = "ranks", .min = 1, .max = 1e6});
  f("layout", layout, "how a sequence is cut among ranks; auto: the best balanced that the mechanisms allow",
    {.choices = {"auto", "contiguous", "zigzag", "balanced"}});
  f("strategy", strategy, "what ranks exchange; native: what each mechanism needs",
    {.choices = {"native", "gather", "ring", "heads"}});
}

void Recipe::Checkpoint::fields(FieldVisitor& f) {
  f("every", every, "steps between checkpoints; 0: only after the last step", {.unit = "steps", .min = 0});
  f("keep", keep, "newest checkpoints kept; 0: all", {.unit = "checkpoints", .min = 0});
  f("strict", strict, "fail instead of falling back when the newest checkpoint is damaged");
}

void Recipe::Eval::fields(FieldVisitor& f) {
  f("every", every, "steps between validations; 0: only after the last step", {.unit = "steps", .min = 0});
  f("batches", batches, "batches of one validation, from the start of the held-out text",
    {.unit = "batches", .min = 1});
  f("grid", grid, "what `weft eval` scores by default: tasks, with several values of a setting as a,b");
}

void Recipe::Sample::fields(FieldVisitor& f) {
  f("every", every, "steps between samples; 0: only after the last step", {.unit = "steps", .min = 0});
  f("tokens", tokens, "length of a sample; 0: no samples", {.unit = "tokens", .min = 0});
  f("prompt", prompt, "text that the sample continues; empty: it starts as a training document does");
  f("temperature", temperature, "divides the logits; 0: always take the most likely token", {.min = 0});
  f("top_k", top_k, "draw only from this many most likely tokens; 0: from all", {.unit = "tokens", .min = 0});
  f("top_p", top_p,
    "of these, draw only from the fewest most likely whose probabilities sum to this; 1: from all",
    {.min = 0, .max = 1, .above_min = true});
  f("seed", seed, "seed of the draws", {.min = 0, .max = kMaxSeed});
}

void Recipe::Numerics::fields(FieldVisitor& f) {
  f("max_skips", max_skips, "skipped steps within the window before the run goes back to its last checkpoint",
    {.unit = "steps", .min = 0});
  f("window", window,
    "past steps over which skips are counted, and the means of the loss and of the gradient norm are taken",
    {.unit = "steps", .min = 1});
  f("spike_zscore", spike_zscore,
    "skip a step whose loss or gradient norm is this far above its mean; 0: never",
    {.unit = "standard deviations", .min = 0});
  f("rewind", rewind, "times that the run may go back to its last checkpoint before it gives up", {.min = 0});
}

void Recipe::Log::fields(FieldVisitor& f) {
  f("every", every, "steps between lines of output", {.unit = "steps", .min = 1});
  f("tensorboard", tensorboard, "also write TensorBoard events");
}

std::string Recipe::where(const std::string& key) const {
  const auto found = places.find(key);
  return found == places.end() ? key + " (default)" : found->second.text();
}

}  // namespace weft
