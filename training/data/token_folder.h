#pragma once
// The folder that tokenize_corpus leaves, as training data: its manifest says which files are meant, and with
// which tokenizer they were made.

#include <optional>
#include <string>
#include <vector>

namespace weft {

class Tokenizer;

// The paths of the shards to train on, in order: all but the validation shard. Nothing where `folder` has no
// manifest of tokenize_corpus. Errors: Exit::data when the manifest is damaged, or the work not finished.
std::optional<std::vector<std::string>> training_shards(const std::string& folder);

// Errors: Exit::data when the manifest beside the file says that another tokenizer made it.
void require_same_tokenizer(const std::string& path, const Tokenizer& tokenizer);

}  // namespace weft
