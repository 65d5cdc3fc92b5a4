pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8>=10.40)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_package(nlohmann_json REQUIRED)

weft_library(weft_tokenizer
  SOURCES
    bpe.cpp bpe_added.cpp bpe_merge.cpp bpe_train.cpp
    pretokenize.cpp pretokenize_classes.cpp pretokenize_fast.cpp pretokenize_regex.cpp
    tokenizer.cpp tokenizer_alphabet.cpp tokenizer_json_read.cpp tokenizer_json_write.cpp
    tokenizer_normalize.cpp tokenizer_utf8.cpp
)
target_link_libraries(weft_tokenizer PRIVATE PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::XXHASH
  nlohmann_json::nlohmann_json)
target_compile_options(weft_tokenizer PRIVATE $<$<CONFIG:Release>:-O3>)  # its loops are hot too

weft_library(weft_tokenize_corpus
  SOURCES tokenize_corpus.cpp tokenize_corpus_input.cpp tokenize_corpus_shards.cpp
  DEPENDS weft_tokenizer weft_data weft_checkpoint
)
target_link_libraries(weft_tokenize_corpus PRIVATE nlohmann_json::nlohmann_json)
