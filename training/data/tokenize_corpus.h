#pragma once
// Text files to token shards, for corpora of any size: what `weft tokenize` does.
//
// The shards are llm.c's .bin files: OUTPUT/NAME_val_000000.bin with the first `validation_tokens` tokens,
// then OUTPUT/NAME_train_000000.bin and on with `shard_tokens` each, 16 bits a token where the vocabulary has
// at most 65536 ids and 32 bits otherwise. As there, the end token stands before each document.
// OUTPUT/manifest.json records the inputs and the shards with their hashes.
//
// The output depends on the inputs and the options alone, not on the number of threads. Each shard and the
// manifest appear whole or not at all; a run that was ended in any way continues when it is started again
// with the same options: shards whose hash is right are kept, and the tokens after them are the same as
// without the interruption.
//
// Memory: one shard (shard_tokens times 2 or 4 bytes), and for each thread about 3 MiB of text with its
// tokens; a document of plain text is cut into parts of 1 MiB where that changes no token. A document that
// cannot be cut, or a line of json, counts whole, with its tokens; one of more than 256 MiB is refused.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "training/data/bpe_train.h"
#include "training/data/tokenizer.h"

namespace weft {

struct TokenizeProgress {
  int64_t tokens = 0, documents = 0, skipped_lines = 0, shards = 0;  // in all, with those of earlier runs
  int64_t input = 0, inputs = 0;  // the file it is at, and how many there are
  // Of the documents, decoded and in UTF-8: in all (none where an earlier version, which did not keep it, has
  // begun the corpus), and those that this run has tokenised.
  std::optional<int64_t> text_bytes = 0;
  int64_t new_bytes = 0;
};

struct TokenizeOptions {
  // .jsonl or .ndjson with a "text" field, or plain text; compressed as .gz or .zst as well.
  std::vector<std::string> inputs;
  std::string output;  // a folder; made if need be
  std::string name = "corpus";
  int64_t shard_tokens = 100'000'000;
  int64_t validation_tokens = 0;
  SpecialText special = SpecialText::plain;
  bool skip_bad_lines = false;  // leave out and count json lines without a text, instead of stopping
  int threads = 0;              // 0: one for each core
  std::function<void(const TokenizeProgress&)> progress;  // called often, never by two threads at a time
  std::function<bool()> stop;                             // true: end early with Exit::stopped
};

// Errors: Exit::usage for impossible options; Exit::data for inputs, also where the validation tokens
// are all there are; Exit::cannot_create when the output
// folder holds something else, or another process works in it; Exit::io; Exit::stopped.
TokenizeProgress tokenize_corpus(const Tokenizer& tokenizer, const TokenizeOptions& options);

// The word counts of text files read in the same way, for train_bpe.
WordCounts count_words_in_files(const std::vector<std::string>& inputs, const std::string& pattern,
                                bool skip_bad_lines = false, int threads = 0);

}  // namespace weft
