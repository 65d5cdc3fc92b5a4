# Compiler flags, third-party packages, and the two functions every folder uses: weft_library and weft_test.

find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(PkgConfig REQUIRED)

add_library(weft_flags INTERFACE)
target_include_directories(weft_flags INTERFACE ${PROJECT_SOURCE_DIR})
# No -ffast-math: NaN and infinity are data here. These two alone let the vectoriser work.
target_compile_options(weft_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -fno-math-errno -fno-trapping-math>)
target_link_libraries(weft_flags INTERFACE Threads::Threads OpenMP::OpenMP_CXX)
if(WEFT_WERROR)
  target_compile_options(weft_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  if(WEFT_NATIVE)
    target_compile_options(weft_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  else()
    target_compile_options(weft_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3>)
  endif()
endif()
if(WEFT_FAULTS)
  target_compile_definitions(weft_flags INTERFACE WEFT_FAULTS)
endif()
set(WEFT_KERNEL_OPTIMISATION -O3)
set(WEFT_TEST_OPTIMISATION -O1)
if(WEFT_SANITIZE)
  set(WEFT_KERNEL_OPTIMISATION -O1)
  set(WEFT_TEST_OPTIMISATION -O0)
  target_compile_options(weft_flags INTERFACE -fsanitize=${WEFT_SANITIZE} -fno-omit-frame-pointer -g1
    -Wno-maybe-uninitialized)  # gcc's own <regex> and <functional> set it off under the address sanitizer
  target_link_options(weft_flags INTERFACE -fsanitize=${WEFT_SANITIZE})
endif()

if(WEFT_CUDA)
  find_package(CUDAToolkit REQUIRED)
  target_compile_definitions(weft_flags INTERFACE WEFT_CUDA)
  target_compile_options(weft_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --extended-lambda -Xcompiler=-Wall,-Wno-unknown-pragmas>)
  target_link_libraries(weft_flags INTERFACE CUDA::cudart_static CUDA::cublasLt)
  include(cmake/cudnn.cmake)
endif()

# weft_library(NAME SOURCES a.cpp ... CUDA a_cuda.cu ... DEPENDS lib ...); CUDA: sources of a build with WEFT_CUDA.
function(weft_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;CUDA;DEPENDS" ${ARGN})
  if(WEFT_CUDA)
    list(APPEND arg_SOURCES ${arg_CUDA})
  endif()
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC weft_flags ${arg_DEPENDS})
  # Kernels get the vectoriser's full effort; the rest compiles faster without it.
  foreach(source ${arg_SOURCES})
    if(source MATCHES "_cpu\\.cpp$" AND CMAKE_BUILD_TYPE MATCHES "Release|Sanitize")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${WEFT_KERNEL_OPTIMISATION}")
    endif()
  endforeach()
endfunction()

# weft_test(NAME SOURCES a_test.cpp ... DEPENDS lib ... [GPU N]): one GoogleTest program, one ctest entry; with WEFT_CUDA
# N more, NAME_gpu_I, that run shares of it on the GPU, where many small kernels keep one process waiting.
function(weft_test name)
  cmake_parse_arguments(arg "" "GPU" "SOURCES;DEPENDS;LABELS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE weft_flags ${arg_DEPENDS} GTest::gtest GTest::gtest_main)
  # Less compile time; what is tested stays as it is.
  target_compile_options(${name} PRIVATE ${WEFT_TEST_OPTIMISATION})
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" ENVIRONMENT "OMP_NUM_THREADS=2;OMP_WAIT_POLICY=passive;POISON=1;WEFT_DEVICE=cpu")
  if(WEFT_CUDA AND arg_GPU)
    math(EXPR last "${arg_GPU} - 1")
    foreach(share RANGE ${last})
      add_test(NAME ${name}_gpu_${share} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
      set_tests_properties(${name}_gpu_${share} PROPERTIES LABELS "${arg_LABELS};gpu"
        ENVIRONMENT "POISON=1;WEFT_DEVICE=cuda;OMP_NUM_THREADS=1;OMP_WAIT_POLICY=passive;GTEST_TOTAL_SHARDS=${arg_GPU};GTEST_SHARD_INDEX=${share}")
    endforeach()
  endif()
endfunction()
