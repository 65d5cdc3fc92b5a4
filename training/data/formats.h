#pragma once
// The readers that open_source chooses from, one a format. Private to this folder.

#include "training/data/input_file.h"
#include "training/data/token_source.h"

namespace weft {

using SourcePtr = std::unique_ptr<TokenSource>;

SourcePtr open_llmc(std::unique_ptr<InputFile> file, const SourceOptions& options);
SourcePtr open_nanogpt(std::unique_ptr<InputFile> file, const SourceOptions& options);
SourcePtr open_megatron(const std::string& prefix, const SourceOptions& options);
SourcePtr open_hdf5(std::unique_ptr<InputFile> file, const SourceOptions& options);
SourcePtr open_jsonl(const std::string& path, const SourceOptions& options);
SourcePtr open_plain_text(const std::string& path, const SourceOptions& options);

enum class Width { u16, u32, i32 };

// Little-endian tokens in a file from byte `start` on.
std::unique_ptr<TokenArray> tokens_in_file(std::unique_ptr<InputFile> file, int64_t start, int64_t count,
                                           Width width);

// The documents of an array in which each end token closes one; one document for all where there is no end
// token.
std::vector<DocumentRange> split_at_end_tokens(const TokenArray& array, int32_t eos);

}  // namespace weft
