// `weft tokenize`: text files to token shards.

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "training/checkpoint/files.h"
#include "training/data/tokenize_corpus.h"
#include "training/log/stop_request.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// On a terminal one line, redrawn; elsewhere a line a minute.
class Meter {
 public:
  ~Meter() {
    if (drawn_ && terminal_) std::fputc('\n', stderr);
  }
  void operator()(const TokenizeProgress& p) {
    if (seconds_since(last_) < (terminal_ ? 0.2 : 60)) return;
    last_ = Clock::now();
    drawn_ = true;
    std::fprintf(stderr, "%sfile %lld of %lld, %.1f M tokens, %.1f MB/s%s", terminal_ ? "\r" : "",
                 static_cast<long long>(p.input) + 1, static_cast<long long>(p.inputs),
                 static_cast<double>(p.tokens) / 1e6,
                 static_cast<double>(p.new_bytes) / 1e6 / seconds_since(start_), terminal_ ? "\033[K" : "\n");
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
  bool drawn_ = false;
};

// Learned from the inputs and kept in the output folder, beside what it made. Started again it comes out the
// same; another one there belongs to another corpus.
std::shared_ptr<const Tokenizer> trained(const TokenizeOptions& options, int64_t vocab) {
  const WordCounts counts =
      count_words_in_files(options.inputs, gpt2_pattern, options.skip_bad_lines, options.threads);
  const auto tokenizer = make_bpe_tokenizer(train_bpe(counts, static_cast<int32_t>(vocab)));
  const std::string path = options.output + "/tokenizer.json";
  if (exists(path)) {
    if (load_tokenizer(path)->hash() != tokenizer->hash())
      throw Error(Exit::cannot_create, "the output folder holds another tokenizer", path,
                  "choose another folder");
  } else {
    make_folder(options.output);
    tokenizer->save(options.output);
  }
  return tokenizer;
}

}  // namespace

int run_tokenize(const Words& words) {
  Flags flags(
      "tokenize", "INPUT...",
      "Turns text (plain or .jsonl, also .gz and .zst) into token shards in a folder that data.train can "
      "name.\n"
      "A line of .jsonl is a document: {\"text\": \"...\"}. In plain text two blank lines, or a line that is "
      "only\n"
      "<|endoftext|>, end one. The tokenizer's end token goes before each document.\n"
      "If it is stopped, the same command continues where it was.");
  TokenizeOptions options;
  std::string tokenizer_path, special = "plain";
  int64_t vocab = 0, threads = 0;
  bool json = false;
  flags.add("--out", options.output, "DIR", "folder of the shards", {.required = true});
  flags.add("--tokenizer", tokenizer_path, "PATH",
            "tokenizer.json, a folder that has one, or bytes (default)");
  flags.add("--train-vocab", vocab, "N", "learn a vocabulary of N tokens from the inputs instead",
            {.min = 257, .max = 1 << 24});
  flags.add("--name", options.name, "NAME", "prefix of the shards' names; default corpus");
  flags.add("--shard-tokens", options.shard_tokens, "N", "tokens in each shard; default 100000000",
            {.min = 1});
  flags.add("--validation-tokens", options.validation_tokens, "N",
            "the first N tokens go to a shard of their own, for validation", {.min = 0});
  flags.add("--special", special, "HOW",
            "special tokens that the text spells out: plain (default, as ordinary text) or parse");
  flags.add("--skip-bad-lines", options.skip_bad_lines, "skip JSON lines without text, and count them");
  flags.add("--threads", threads, "N", "threads; default: one for each core", {.min = 1, .max = 4096});
  flags.add("--json", json, "one line of JSON, tokenize/1");
  if (!flags.parse(words)) return 0;
  if (special != "plain" && special != "parse")
    throw Error(Exit::usage, "--special is " + special, "--special", "plain or parse");
  if (vocab > 0 && !tokenizer_path.empty())
    throw Error(Exit::usage, "--tokenizer and --train-vocab exclude each other", "--train-vocab",
                "leave one out");

  const auto start = Clock::now();
  std::optional<StopRequest> stop(std::in_place);
  options.inputs = flags.arguments();
  options.special = special == "parse" ? SpecialText::parse : SpecialText::plain;
  options.threads = static_cast<int>(threads);
  options.stop = [&] { return stop->requested(); };
  const auto tokenizer =
      vocab > 0
          ? trained(options, vocab)
          : load_tokenizer(tokenizer_path.empty() || tokenizer_path == "bytes" ? "byte" : tokenizer_path);
  TokenizeProgress done;
  {
    Meter meter;
    options.progress = [&](const TokenizeProgress& p) { meter(p); };
    done = tokenize_corpus(*tokenizer, options);
  }
  stop.reset();  // a reader that leaves ends what prints
  if (json) {
    print_line({{"weft", "tokenize/1"},
                {"exit", 0},
                {"path", options.output},
                {"tokenizer", tokenizer->name()},
                {"tokenizer_hash", tokenizer->hash()},
                {"vocab", tokenizer->vocab_size()},
                {"tokens", done.tokens},
                {"documents", done.documents},
                {"skipped_lines", done.skipped_lines},
                {"shards", done.shards},
                {"text_bytes", done.text_bytes ? nlohmann::ordered_json(*done.text_bytes) : nullptr},
                {"seconds", seconds_since(start)}});
  } else {
    print(text(done.tokens, " tokens of ", tokenizer->name(), ", ", done.documents, " documents, ",
               done.shards, " shards in ", options.output, "\n"));
  }
  return 0;
}

}  // namespace weft
