#include "training/eval.h"

#include <algorithm>
#include <map>

namespace weft {
namespace {

// About so many tokens at a time.
constexpr int64_t kTokens = 8192;

struct TextConfig {
  int64_t context = 0;
  int64_t buckets = 1;
  void fields(FieldVisitor& f) {
    f("context", context, "length of a sample; 0: the run's context",
      {.unit = "tokens", .min = 0, .max = 1e9});
    f("buckets", buckets, "equal parts of the positions, each with a row of its own", {.min = 1, .max = 1e6});
  }
};

std::vector<std::pair<std::string, std::string>> keys_of(const TaskText& text) {
  std::vector<std::pair<std::string, std::string>> keys{{"task", text.id}};
  for (const FieldValue& item : text.settings.items) keys.emplace_back(item.key, item.text);
  return keys;
}

MicroBatch whole(const Model& model, const Batch& batch) {
  return cut_micro_batch(batch, SegmentPlan::contiguous, 1, 0, model.align(),
                         model.output_weight()->working.device());
}

void leave_if_asked(const EvalOptions& options) {
  if (options.stop && options.stop())
    throw Error(Exit::stopped, "stopped by a signal before the result was there", "eval", "call it again");
}

// Shares of the commonest label, and of the commonest whole answer.
class Commonest {
 public:
  void add(const Batch& batch) {
    for (size_t d = 0; d + 1 < batch.offsets.size(); ++d) {
      std::vector<int32_t> answer;
      for (int64_t i = batch.offsets[d]; i < batch.offsets[d + 1]; ++i)
        if (batch.targets[static_cast<size_t>(i)] >= 0)
          answer.push_back(batch.targets[static_cast<size_t>(i)]);
      for (const int32_t label : answer) most_label_ = std::max(most_label_, ++labels_[label]);
      count_ += static_cast<int64_t>(answer.size());
      if (answer.empty()) continue;
      most_answer_ = std::max(most_answer_, ++answers_[answer]);
      ++answered_;
    }
  }
  double label() const { return static_cast<double>(most_label_) / static_cast<double>(count_); }
  double answer() const { return static_cast<double>(most_answer_) / static_cast<double>(answered_); }

 private:
  std::map<int32_t, int64_t> labels_;
  std::map<std::vector<int32_t>, int64_t> answers_;
  int64_t most_label_ = 0, most_answer_ = 0, count_ = 0, answered_ = 0;
};

void eval_task(const OpenModel& m, const TaskText& text, const EvalOptions& options,
               std::vector<EvalRow>& rows) {
  const int64_t length = text.make(*m.tokenizer)->length();
  const auto maker = std::make_shared<TaskSamples>(std::vector{text}, *m.tokenizer, length,
                                                   static_cast<uint32_t>(options.seed), TaskSplit::held_out);
  if (maker->vocab() > m.model->config().vocab) {
    std::string trained;
    for (const std::string& task : m.recipe.data.task) trained += (trained.empty() ? "" : "; ") + task;
    throw Error(Exit::recipe,
                weft::text(text.id, " has ", maker->vocab(), " tokens, the model ", m.model->config().vocab),
                "task",
                trained.empty() ? "the run was trained on text: score it on lm"
                                : "ask for what the run was trained on: " + trained);
  }
  const Dataset data(maker, length);
  Evaluator evaluator(*m.model, {.documents = options.examples * maker->documents()});
  Commonest commonest;
  const int64_t together = std::max<int64_t>(1, kTokens / length);
  for (int64_t first = 0; first < options.examples; first += together) {
    leave_if_asked(options);
    std::vector<int64_t> which;
    for (int64_t i = first; i < std::min(options.examples, first + together); ++i) which.push_back(i);
    const Batch batch = data.batch(which);
    commonest.add(batch);
    LocalCrossings crossings;
    evaluator.add(whole(*m.model, batch), crossings, document_numbers(batch, length, maker->documents()));
  }
  const Evaluation e = evaluator.finish();
  EvalRow row{keys_of(text), options.seed, "accuracy", e.accuracy, e.tokens, commonest.label()};
  rows.push_back(row);
  if (e.tokens == e.examples) return;
  row.metric = "exact";
  row.value = e.exact;
  row.n = e.examples;
  row.chance = commonest.answer();
  rows.push_back(row);
}

Dataset open_text(const OpenModel& m, const std::vector<std::string>& paths, int64_t context) {
  Recipe recipe = m.recipe;
  recipe.context = context;
  const int64_t vocab = m.model->config().vocab;
  if (!recipe.data.task.empty() && paths.empty())
    throw Error(Exit::usage, "the run was trained on a task and has no text", "lm",
                "name a text with --text");
  if (paths.empty()) {
    Datasets data = open_recipe_data(recipe, *m.tokenizer, vocab);
    if (data.val) return *std::move(data.val);
    throw Error(Exit::usage, "the run has no held-out text", recipe.where("data.val"),
                "name a text with --text");
  }
  SourceOptions options;
  options.eos = m.tokenizer->eos_id();
  options.vocab_size = vocab;
  options.tokenizer = m.tokenizer.get();
  return Dataset({{open_corpus(paths, options), 1}}, context, Dataset::Tail::keep);
}

void eval_text(const OpenModel& m, const TaskText& text, const std::vector<std::string>& paths,
               const EvalOptions& options, std::vector<EvalRow>& rows) {
  TextConfig config;
  read_config(config, text.settings, kTextTask);
  const int64_t context = config.context > 0 ? config.context : m.recipe.context;
  const Dataset data = open_text(m, paths, context);
  data.require_labels();
  const int64_t bucket = (context + config.buckets - 1) / config.buckets;
  Evaluator evaluator(*m.model, {.tokenizer = m.tokenizer.get(), .bucket = bucket});
  const int64_t together = std::max<int64_t>(1, kTokens / context);
  for (int64_t first = 0; first < data.samples(); first += together) {
    leave_if_asked(options);
    std::vector<int64_t> which;
    for (int64_t i = first; i < std::min(data.samples(), first + together); ++i) which.push_back(i);
    LocalCrossings crossings;
    evaluator.add(whole(*m.model, data.batch(which)), crossings);
  }
  const auto add = [&](int64_t from, int64_t to, const Evaluation& e) {
    rows.push_back({{{"task", kTextTask},
                     {"context", weft::text(context)},
                     {"from", weft::text(from)},
                     {"to", weft::text(to)}},
                    options.seed,
                    "bits_per_byte",
                    e.bits_per_byte,
                    e.tokens});
  };
  add(0, context, evaluator.finish());
  const std::vector<Evaluation> buckets = evaluator.buckets();
  for (size_t b = 0; config.buckets > 1 && b < buckets.size(); ++b) {
    const int64_t from = static_cast<int64_t>(b) * bucket;
    add(from, std::min(from + bucket, context), buckets[b]);
  }
}

}  // namespace

std::vector<FieldDescription> describe_text_task() { return describe(TextConfig()); }

std::vector<EvalRow> eval(const OpenModel& m, const std::vector<std::string>& texts,
                          const EvalOptions& options, const std::vector<std::string>& paths) {
  std::vector<EvalRow> rows;
  for (const std::string& text : texts)
    for (const TaskText& cell : TaskText::parse(text).grid())
      if (cell.id == kTextTask)
        eval_text(m, cell, paths, options, rows);
      else
        eval_task(m, cell, options, rows);
  return rows;
}

std::vector<std::string> eval_texts(const Recipe& recipe) {
  if (!recipe.eval.grid.empty()) return recipe.eval.grid;
  if (!recipe.data.task.empty()) return recipe.data.task;
  return {kTextTask};
}

}  // namespace weft
