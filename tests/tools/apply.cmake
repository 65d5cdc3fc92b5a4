find_package(nlohmann_json REQUIRED)
weft_test(test_apply
  SOURCES ../attention/conformance.cpp apply_command_test.cpp apply_files.cpp apply_test.cpp
  DEPENDS weft_apply nlohmann_json::nlohmann_json
)
