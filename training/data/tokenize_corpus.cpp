#include "training/data/tokenize_corpus.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <thread>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/hash.h"
#include "training/checkpoint/lock.h"
#include "training/data/tokenize_corpus_input.h"
#include "training/data/tokenize_corpus_shards.h"
#include "training/data/tokenizer_threads.h"

namespace weft {
namespace {

constexpr size_t batch_bytes = size_t{1} << 20;

int thread_count(int asked) {
  return asked > 0 ? asked : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Threads that take turns: each reads the next batch, works on it beside the others, and hands over its
// result in the order of reading. No more batches are in memory than there are threads.
class Pipeline {
 public:
  explicit Pipeline(UnitReader& reader) : reader_(reader) {}

  // work(batch) makes a result; finish(batch, result) takes them in order, one at a time.
  template <class Work, class Finish>
  void run(int threads, Work&& work, Finish&& finish) {
    run_threads(threads, [&](int) {
      try {
        loop(work, finish);
      } catch (...) {
        const std::lock_guard lock(turn_mutex_);
        failed_ = true;
        turn_changed_.notify_all();
        throw;
      }
    });
  }

 private:
  template <class Work, class Finish>
  void loop(Work& work, Finish& finish) {
    std::vector<TextUnit> batch;
    for (;;) {
      int64_t ticket;
      {
        const std::lock_guard lock(read_mutex_);
        if (failed_ || !read(batch)) return;
        ticket = next_ticket_++;
      }
      auto result = work(batch);
      std::unique_lock lock(turn_mutex_);
      turn_changed_.wait(lock, [&] { return failed_ || turn_ == ticket; });
      if (failed_) return;
      finish(batch, result);
      ++turn_;
      turn_changed_.notify_all();
    }
  }

  // Sets failed_ while the reader is still locked: after a failure nobody may read on.
  bool read(std::vector<TextUnit>& batch) {
    try {
      return reader_.next(batch, batch_bytes);
    } catch (...) {
      failed_ = true;
      throw;
    }
  }

  UnitReader& reader_;
  std::mutex read_mutex_, turn_mutex_;
  std::condition_variable turn_changed_;
  int64_t next_ticket_ = 0, turn_ = 0;
  std::atomic<bool> failed_{false};
};

struct EncodedUnit {
  size_t tokens = 0;
  int64_t text_bytes = 0;
  int64_t skipped = 0;  // lines: 0 or 1
};

struct EncodedBatch {
  std::vector<int32_t> tokens;
  std::vector<EncodedUnit> units;
};

class CorpusWriter {
 public:
  CorpusWriter(const Tokenizer& tokenizer, const TokenizeOptions& options, CorpusManifest manifest)
      : tokenizer_(tokenizer), options_(options), manifest_(std::move(manifest)), shard_(new_shard()) {
    for (const CorpusShard& s : manifest_.shards) count(s);
    if (!manifest_.shards.empty()) start_ = manifest_.shards.back().end;
    progress_.inputs = static_cast<int64_t>(options.inputs.size());
  }

  TokenizeProgress run() {
    if (manifest_.is_complete) return progress_;
    UnitReader reader(options_.inputs, tokenizer_.may_cut_at_newlines(), static_cast<int32_t>(start_.input));
    Pipeline(reader).run(
        thread_count(options_.threads), [&](const std::vector<TextUnit>& batch) { return encode(batch); },
        [&](const std::vector<TextUnit>& batch, const EncodedBatch& encoded) { take(batch, encoded); });
    if (manifest_.shards.empty() && shard_.tokens() == 0)
      throw Error(Exit::data, "the inputs hold no text", options_.inputs.front(),
                  "name files with documents");
    if (options_.validation_tokens > 0 && std::ssize(manifest_.shards) + (shard_.tokens() > 0) == 1)
      refuse_validation();
    if (shard_.tokens() > 0) finish_shard();
    CorpusShard& last = manifest_.shards.back();  // with what is behind its tokens and has none
    last.skipped_lines += pending_.skipped_lines;
    if (last.text_bytes) *last.text_bytes += *pending_.text_bytes;
    manifest_.is_complete = true;
    save_manifest();
    return progress_;
  }

  // The same folder is then good for fewer of them.
  [[noreturn]] void refuse_validation() const {
    for (const CorpusShard& s : manifest_.shards) remove_tree(options_.output + "/" + s.file);
    remove_tree(options_.output + "/manifest.json");
    throw Error(Exit::data,
                text("the inputs hold ", progress_.tokens, " tokens, of which ", options_.validation_tokens,
                     " are to be held out: none is left to train on"),
                options_.inputs.front(), "give more text or fewer validation tokens");
  }

  void save_manifest() const { write_corpus_manifest(manifest_, options_.output + "/manifest.json"); }

 private:
  EncodedBatch encode(const std::vector<TextUnit>& batch) const {
    EncodedBatch out;
    for (const TextUnit& unit : batch) {
      out.units.push_back(is_done(unit) ? EncodedUnit() : encode_unit(unit, out.tokens));
    }
    return out;
  }

  EncodedUnit encode_unit(const TextUnit& unit, std::vector<int32_t>& out) const {
    EncodedUnit encoded;
    std::optional<std::string> line;
    std::string_view document = unit.text;
    if (unit.is_json) {
      line = json_text(unit, options_.inputs[unit.input], options_.skip_bad_lines, encoded.skipped);
      document = line ? *line : std::string_view();
    }
    if (document.empty()) return encoded;
    const size_t before = out.size();
    if (unit.starts_document) out.push_back(tokenizer_.eos_id());
    tokenizer_.encode_to(document, options_.special, out);
    encoded.tokens = out.size() - before;
    encoded.text_bytes = static_cast<int64_t>(document.size());
    return encoded;
  }

  // Whether all of the unit lies in shards that an earlier run has finished.
  bool is_done(const TextUnit& unit) const { return CorpusPosition{unit.input, unit.index + 1, 0} <= start_; }

  void take(const std::vector<TextUnit>& batch, const EncodedBatch& encoded) {
    if (options_.stop && options_.stop())
      throw Error(Exit::stopped, "stopped before the end", options_.output,
                  "run it again with the same options to continue");
    const int32_t* tokens = encoded.tokens.data();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!is_done(batch[i])) take_unit(batch[i], tokens, encoded.units[i]);
      tokens += encoded.units[i].tokens;
    }
    progress_.input = batch.back().input;
    if (options_.progress) options_.progress(progress_);
  }

  void take_unit(const TextUnit& unit, const int32_t* tokens, const EncodedUnit& encoded) {
    const auto size = static_cast<int64_t>(encoded.tokens);
    // The start of the first unit may be in the last shard of an earlier run.
    int64_t done = unit.input == start_.input && unit.index == start_.unit ? start_.tokens : 0;
    if (done == 0 && size > 0 && unit.starts_document) ++pending_.documents, ++progress_.documents;
    if (done == 0) {
      pending_.skipped_lines += encoded.skipped, progress_.skipped_lines += encoded.skipped;
      *pending_.text_bytes += encoded.text_bytes;
      if (progress_.text_bytes) *progress_.text_bytes += encoded.text_bytes;
    }
    progress_.new_bytes += encoded.text_bytes;
    while (done < size) {
      const int64_t taken = shard_.append(tokens + done, size - done);
      done += taken;
      progress_.tokens += taken;
      pending_.end = {unit.input, unit.index, done};
      if (shard_.is_full()) finish_shard();
    }
    pending_.end = {unit.input, unit.index + 1, 0};
  }

  void finish_shard() {
    pending_.tokens = shard_.tokens();
    const bool validates = options_.validation_tokens > 0;
    const bool is_validation = validates && manifest_.shards.empty();
    const size_t number = manifest_.shards.size() - (validates && !is_validation ? 1 : 0);
    char digits[24];
    std::snprintf(digits, sizeof digits, "%06zu", number);
    pending_.file = text(options_.name, is_validation ? "_val_" : "_train_", digits, ".bin");
    pending_.hash = shard_.write(options_.output + "/" + pending_.file);
    manifest_.shards.push_back(std::exchange(pending_, {}));
    save_manifest();
    ++progress_.shards;
    shard_ = new_shard();
  }

  ShardBuffer new_shard() const {
    const bool is_validation = manifest_.shards.empty() && options_.validation_tokens > 0;
    return {is_validation ? options_.validation_tokens : options_.shard_tokens, manifest_.plan.token_bytes()};
  }

  void count(const CorpusShard& s) {
    progress_.tokens += s.tokens;
    progress_.documents += s.documents;
    progress_.skipped_lines += s.skipped_lines;
    if (!s.text_bytes) progress_.text_bytes.reset();
    if (progress_.text_bytes) *progress_.text_bytes += *s.text_bytes;
    ++progress_.shards;
  }

  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  CorpusManifest manifest_;
  CorpusPosition start_;
  CorpusShard pending_;  // of the shard that is being filled
  ShardBuffer shard_;
  TokenizeProgress progress_;
};

void check_options(const TokenizeOptions& o) {
  const auto refuse = [](const std::string& what) { throw Error(Exit::usage, what, "tokenize"); };
  if (o.inputs.empty()) refuse("no input files");
  if (o.output.empty()) refuse("no output folder");
  if (o.name.empty() || o.name.find('/') != o.name.npos)
    refuse("the name of the corpus is empty or holds a slash");
  if (o.shard_tokens < 1 || o.shard_tokens > INT32_MAX) refuse("shard_tokens lies outside 1 .. 2147483647");
  if (o.validation_tokens < 0 || o.validation_tokens > INT32_MAX)
    refuse("validation_tokens lies outside 0 .. 2147483647");
}

CorpusPlan make_plan(const Tokenizer& tokenizer, const TokenizeOptions& o) {
  CorpusPlan plan{.name = o.name,
                  .tokenizer_name = tokenizer.name(),
                  .tokenizer_hash = tokenizer.hash(),
                  .vocab_size = tokenizer.vocab_size(),
                  .eos_id = tokenizer.eos_id(),
                  .shard_tokens = o.shard_tokens,
                  .validation_tokens = o.validation_tokens,
                  .parse_special = o.special == SpecialText::parse,
                  .skip_bad_lines = o.skip_bad_lines,
                  .inputs = std::vector<CorpusInput>(o.inputs.size())};
  std::atomic<size_t> next{0};
  run_threads(std::min<int>(thread_count(o.threads), static_cast<int>(o.inputs.size())), [&](int) {
    for (size_t i; (i = next++) < o.inputs.size();)
      plan.inputs[i] = {o.inputs[i], File::open_read(o.inputs[i]).size(), hash_file(o.inputs[i])};
  });
  return plan;
}

// The shards of earlier runs that are in order, up to the first that is not.
std::vector<CorpusShard> good_shards(const std::vector<CorpusShard>& shards, const std::string& folder) {
  std::vector<CorpusShard> good;
  for (const CorpusShard& s : shards) {
    const std::string path = folder + "/" + s.file;
    if (!exists(path) || hash_file(path) != s.hash) break;
    good.push_back(s);
  }
  return good;
}

// What an earlier run with the same plan has left, or an empty start.
CorpusManifest continued(const CorpusPlan& plan, const TokenizeOptions& o) {
  const std::string path = o.output + "/manifest.json";
  if (!exists(path)) {
    for (const std::string& name : list_folder(o.output))
      if (name.ends_with(".bin"))
        throw Error(Exit::cannot_create, "the output folder holds token files and no manifest.json",
                    o.output + "/" + name, "choose another folder");
    return {.plan = plan, .shards = {}, .is_complete = false};
  }
  CorpusManifest manifest = read_corpus_manifest(path);
  if (manifest.plan != plan)
    throw Error(Exit::cannot_create, "the output folder holds a corpus made with other inputs or options",
                path, "choose another folder, or remove this one");
  const size_t listed = manifest.shards.size();
  manifest.shards = good_shards(manifest.shards, o.output);
  manifest.is_complete = manifest.is_complete && manifest.shards.size() == listed;
  for (const std::string& name : list_folder(o.output))
    if (name.find(".bin.tmp-") != name.npos) std::filesystem::remove(o.output + "/" + name);
  return manifest;
}

}  // namespace

TokenizeProgress tokenize_corpus(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  check_options(options);
  for (const std::string& input : options.inputs) File::open_read(input);  // before there is a folder
  make_folder(options.output);
  const ckpt::RunLock lock(options.output);
  const CorpusPlan plan = make_plan(tokenizer, options);
  CorpusWriter writer(tokenizer, options, continued(plan, options));
  writer.save_manifest();
  return writer.run();
}

WordCounts count_words_in_files(const std::vector<std::string>& inputs, const std::string& pattern,
                                bool skip_bad_lines, int threads) {
  UnitReader reader(inputs, true);
  std::vector<WordCounts> idle;  // one for each thread that is not counting
  std::mutex mutex;
  const auto work = [&](const std::vector<TextUnit>& batch) {
    std::optional<WordCounts> counts;
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        counts = std::move(idle.back());
        idle.pop_back();
      }
    }
    if (!counts) counts.emplace(pattern);
    for (const TextUnit& unit : batch) {
      int64_t bad = 0;
      if (!unit.is_json)
        counts->add(unit.text);
      else if (const auto document = json_text(unit, inputs[unit.input], skip_bad_lines, bad))
        counts->add(*document);
    }
    return std::move(*counts);
  };
  Pipeline(reader).run(thread_count(threads), work, [&](const auto&, WordCounts& counts) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(counts));
  });
  WordCounts all(pattern);
  for (const WordCounts& counts : idle) all.add(counts);
  return all;
}

}  // namespace weft
