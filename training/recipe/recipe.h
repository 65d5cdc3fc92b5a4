#pragma once
// The recipe: everything a run is made of but the world it runs on. Every key with its meaning, unit, range
// and default is listed once, in recipe.cpp; `weft help KEY` prints it.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/fields.h"

namespace weft {

struct Recipe {
  struct Source {
    std::string path;  // a file, a folder or a glob
    double weight = 1;
    void fields(FieldVisitor& f);
  };

  // data.train: a path, a list of paths, or a list of {path, weight}.
  struct Sources : CustomField {
    std::vector<Source> list;

    void read(const FieldValue& value, const std::string& name) override;
    FieldValue write() const override;
    const char* type() const override { return "path, list of paths, or list of {path, weight}"; }
    const char* schema() const override;
  };

  // data.val: a path, a list of paths, or the share of the training text to hold out.
  struct Validation : CustomField {
    double share = 0.05;             // used where there are no paths; 0 = no validation
    std::vector<std::string> paths;  // files, folders or globs

    void read(const FieldValue& value, const std::string& name) override;
    FieldValue write() const override;
    const char* type() const override { return "share of 0 to 0.999, path, or list of paths"; }
    const char* schema() const override;
  };

  // model.mechanisms: mechanism id -> attribute -> value. The recipe knows no mechanism, so values stay as
  // written, with their places, for the registry to read: read_config(config, *mechanisms.find(id), name).
  // Reading adds to what is there, attribute by attribute.
  struct Mechanisms : CustomField {
    FieldValue map;

    const FieldValue* find(const std::string& id) const { return map.find(id); }
    void read(const FieldValue& value, const std::string& name) override;
    FieldValue write() const override;
    const char* type() const override { return "map of mechanism id to its attributes"; }
    const char* schema() const override;
  };

  struct Model {
    std::vector<std::string> layers = {"softmax*4"};
    int64_t width = 256;
    int64_t heads = 4;
    int64_t kv_heads = 0;   // 0 = heads
    int64_t head_size = 0;  // 0 = width / heads
    int64_t ffn = 0;        // 0 = derived
    std::string ffn_kind = "swiglu";
    std::string norm = "rms";
    double norm_eps = 1e-6;
    std::string position = "rope";
    double rope_theta = 10000;
    bool qk_norm = false;
    bool tied = true;
    bool scale_embedding = false;
    int64_t vocab = 0;       // 0 = the tokenizer's
    int64_t short_conv = 0;  // 0 = none
    std::string checkpointing = "none";
    Mechanisms mechanisms;
    void fields(FieldVisitor& f);
  };

  struct Optim {
    std::string kind = "adamw";
    double lr = 3e-4;
    double min_lr = 0;
    std::string schedule = "cosine";
    int64_t warmup = 100;
    int64_t decay = 0;  // steps at the end of wsd
    double beta1 = 0.9;
    double beta2 = 0.95;
    double eps = 1e-8;
    double weight_decay = 0.1;
    double clip = 1;  // 0 = off
    double ema = 0;   // 0 = off
    double muon_lr = 0.02;
    double muon_momentum = 0.95;
    void fields(FieldVisitor& f);
  };

  struct Data {
    std::vector<std::string> task;  // "mqar length=64 pairs=4"; the recipe knows no task
    Sources train;
    Validation val;
    std::string tokenizer = "bytes";
    bool shuffle = true;
    int64_t prefetch = 2;
    bool skip_bad = false;
    void fields(FieldVisitor& f);
  };

  struct Mesh {
    int64_t dp = 0;  // 0 = world / cp
    int64_t cp = 1;  // a wish, see resolve_mesh
    std::string layout = "auto";
    std::string strategy = "native";
    void fields(FieldVisitor& f);
  };

  struct Checkpoint {
    int64_t every = 1000;  // 0 = only after the last step
    int64_t keep = 3;      // 0 = all
    bool strict = false;
    void fields(FieldVisitor& f);
  };

  struct Eval {
    int64_t every = 250;  // 0 = only after the last step
    int64_t batches = 8;
    std::vector<std::string> grid;  // for `weft eval`
    void fields(FieldVisitor& f);
  };

  struct Sample {
    int64_t every = 0;  // 0 = only after the last step
    int64_t tokens = 128;
    std::string prompt;
    double temperature = 0.8;  // 0 = the likeliest token
    int64_t top_k = 0;         // 0 = all
    double top_p = 1;          // 1 = all
    int64_t seed = 1;
    void fields(FieldVisitor& f);
  };

  struct Numerics {
    int64_t max_skips = 10;
    int64_t window = 64;
    double spike_zscore = 0;  // 0 = off
    int64_t rewind = 1;
    void fields(FieldVisitor& f);
  };

  struct Log {
    int64_t every = 1;
    bool tensorboard = true;
    void fields(FieldVisitor& f);
  };

  int64_t version = 1;  // of the recipe format
  std::string run;      // load_recipe fills in runs/NAME
  std::string init;
  int64_t seed = 1;
  int64_t steps = 1000;
  int64_t batch_tokens = 8192;  // of all ranks together
  int64_t context = 512;
  int64_t micro_tokens = 0;  // 0 = derived
  std::string precision = "bf16";
  std::string determinism = "run";
  int64_t cuda_graphs = 32;  // 0 = none
  Model model;
  Optim optim;
  Data data;
  Mesh mesh;
  Checkpoint checkpoint;
  Eval eval;
  Sample sample;
  Numerics numerics;
  Log log;

  void fields(FieldVisitor& f);

  // Where each key was written, for errors found later (an unknown mechanism, a missing file).
  std::map<std::string, Place> places;
  // "r.yaml:3:5", or "KEY (default)".
  std::string where(const std::string& key) const;
};

// Refuses what no single key can tell: heads that do not divide, a context over the batch, a malformed
// model.layers. Exit::recipe.
void check_recipe(const Recipe& recipe);

// {"lightning*3", "softmax"} -> {"lightning", "lightning", "lightning", "softmax"}.
// where: named by the error for a malformed pattern, Exit::recipe.
std::vector<std::string> expand_layers(const std::vector<std::string>& patterns,
                                       const std::string& where = {});

}  // namespace weft
