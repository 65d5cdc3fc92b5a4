# cuDNN 9 and the headers of cudnn-frontend: WEFT_WITH_CUDNN says whether both are here, weft_cudnn brings them.
# -DWEFT_CUDNN_FRONTEND=FOLDER names the folder of cudnn_frontend.h, -DCUDNN_ROOT=FOLDER that of cuDNN itself.

set(WEFT_WITH_CUDNN OFF)
if(NOT WEFT_CUDNN)
  return()
endif()
find_path(CUDNN_INCLUDE cudnn_version.h HINTS ${CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${CUDNN_ROOT} ${CUDAToolkit_LIBRARY_DIR}
  PATH_SUFFIXES lib lib64)
find_path(WEFT_CUDNN_FRONTEND cudnn_frontend.h
  HINTS ${PROJECT_SOURCE_DIR}/build/third_party/cudnn_frontend/include)
if(NOT CUDNN_INCLUDE OR NOT CUDNN_LIBRARY)
  message(STATUS "cuDNN: not found; our own kernels serve attention")
  return()
endif()
file(STRINGS ${CUDNN_INCLUDE}/cudnn_version.h version REGEX "define CUDNN_MAJOR")
string(REGEX MATCH "[0-9]+" version "${version}")
if(version LESS 9)
  message(STATUS "cuDNN: version ${version} found, 9 is needed; our own kernels serve attention")
  return()
endif()
if(NOT WEFT_CUDNN_FRONTEND)
  message(STATUS "cuDNN: cudnn_frontend.h not found (./setup.sh fetches it); our own kernels serve attention")
  return()
endif()
set(WEFT_WITH_CUDNN ON)
message(STATUS "cuDNN: ${CUDNN_LIBRARY}, ${WEFT_CUDNN_FRONTEND}")
add_library(weft_cudnn INTERFACE)
target_include_directories(weft_cudnn SYSTEM INTERFACE ${WEFT_CUDNN_FRONTEND} ${CUDNN_INCLUDE})
target_compile_definitions(weft_cudnn INTERFACE WEFT_CUDNN CUDNN_FRONTEND_SKIP_JSON_LIB)
# The headers name NVRTC for an engine that is not used here.
target_link_libraries(weft_cudnn INTERFACE ${CUDNN_LIBRARY} CUDA::nvrtc)
