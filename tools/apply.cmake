find_package(nlohmann_json REQUIRED)
weft_library(weft_apply
  SOURCES
    apply.cpp apply_describe.cpp apply_options.cpp apply_run.cpp apply_signature.cpp apply_states.cpp apply_task.cpp
  DEPENDS weft_attention weft_checkpoint weft_distributed weft_tools
)
target_link_libraries(weft_apply PRIVATE nlohmann_json::nlohmann_json)
