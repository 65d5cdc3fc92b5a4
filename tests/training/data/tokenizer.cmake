pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
find_package(nlohmann_json REQUIRED)

weft_test(tokenizer_test
  SOURCES tokenizer_test.cpp pretokenize_test.cpp bpe_test.cpp tokenizer_json_test.cpp
  DEPENDS weft_tokenizer
)
target_link_libraries(tokenizer_test PRIVATE nlohmann_json::nlohmann_json)

weft_test(tokenize_corpus_test SOURCES tokenize_corpus_test.cpp DEPENDS weft_tokenize_corpus)
target_link_libraries(tokenize_corpus_test PRIVATE PkgConfig::ZSTD nlohmann_json::nlohmann_json)
