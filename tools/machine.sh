# shellcheck shell=bash disable=SC2034
# What this machine has and what it lacks. Sourced by setup.sh, test.sh, .ci/run and the checks in tools/.

# Each line: a package, then what proves that it is there: a command, or a header in an include directory.
build_packages="
g++                 g++
cmake               cmake
ninja-build         ninja
pkg-config          pkg-config
libopenmpi-dev      mpicxx
openmpi-bin         mpirun
libhdf5-dev         hdf5/serial/hdf5.h
libgtest-dev        gtest/gtest.h
libyaml-cpp-dev     yaml-cpp/yaml.h
nlohmann-json3-dev  nlohmann/json.hpp
libxxhash-dev       xxhash.h
libzstd-dev         zstd.h
zlib1g-dev          zlib.h
libpcre2-dev        pcre2.h
libutf8proc-dev     utf8proc.h
bible-kjv           bible
"
check_packages="
ccache              ccache
clang-format        clang-format
clang-tidy          clang-tidy
"

has_header() {
  local folder
  for folder in /usr/include /usr/local/include "/usr/include/$(uname -m)-linux-gnu"; do
    [ -e "$folder/$1" ] && return
  done
  return 1
}

# version_of COMMAND -> 3.25.1
version_of() { "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9.]+' | head -n 1; }

# at_least 3.25 3.9 is false
at_least() { printf '%s\n%s\n' "$1" "$2" | sort -VC; }

has() {
  case $1 in
    *.h | *.hpp | */*) has_header "$1" ;;
    cmake) command -v cmake >/dev/null && at_least 3.25 "$(version_of cmake)" ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# The packages of a list that are missing, on one line.
missing() {
  local package proof
  while read -r package proof; do
    [ -z "$package" ] || has "$proof" || printf '%s ' "$package"
  done <<<"$1"
}

# Installs what a list names and this machine lacks. The package manager is not called when nothing is
# missing. Who may not install gets the line for the administrator, and the caller goes on.
install_missing() {
  local packages as_root=()
  packages=$(missing "$1")
  [ -n "$packages" ] || return 0
  if ! command -v apt-get >/dev/null; then
    echo "missing, and no apt-get here; the Debian names are: $packages" >&2
    return 0
  fi
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
      as_root=(sudo)
    else
      echo "missing; an administrator can run: apt-get install -y --no-install-recommends $packages" >&2
      return 0
    fi
  fi
  echo "installing $packages" >&2
  "${as_root[@]}" apt-get update -qq || true # offline, the lists that are there may do
  local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
    --no-install-recommends -o Dpkg::Use-Pty=0)
  # One unknown name makes the whole call fail, so each gets its own try then.
  # shellcheck disable=SC2086
  if ! "${install[@]}" $packages >/dev/null; then
    local package
    for package in $packages; do "${install[@]}" "$package" >/dev/null || true; done
  fi
  packages=$(missing "$1")
  if [ -n "$packages" ]; then echo "still missing: $packages" >&2; fi
}

# Compile jobs: one a core, and 1.5 GiB of memory for each.
jobs() {
  local kib limit count
  kib=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [ "$limit" != max ] && [ $((limit / 1024)) -lt "$kib" ]; then kib=$((limit / 1024)); fi
  count=$((kib / 1572864))
  if [ "$count" -gt "$(nproc)" ]; then count=$(nproc); fi
  if [ "$count" -lt 1 ]; then count=1; fi
  echo "$count"
}

has_gpu() { compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null || nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# Puts the CUDA toolkit on PATH where it is installed off it.
find_toolkit() {
  command -v nvcc >/dev/null && return
  local folder
  for folder in "${CUDA_HOME:-}" /usr/local/cuda /opt/cuda; do
    if [ -n "$folder" ] && [ -x "$folder/bin/nvcc" ]; then
      export PATH="$folder/bin:$PATH"
      return
    fi
  done
  return 1
}

# The headers of cuDNN's front end, which no CUDA package brings: 4 MB, MIT, in a wheel of PyPI. Fails where they
# cannot be had.
cudnn_frontend_download="python3 -m pip download --no-deps --only-binary=:all: -d build/third_party \
nvidia-cudnn-frontend==1.32.0"
fetch_cudnn_frontend() {
  local folder=build/third_party
  if has_header cudnn_frontend.h || [ -e $folder/cudnn_frontend/include/cudnn_frontend.h ]; then return; fi
  mkdir -p $folder/cudnn_frontend
  if ! compgen -G "$folder/nvidia_cudnn_frontend-*.whl" >/dev/null; then
    $cudnn_frontend_download >/dev/null 2>&1 || true
  fi
  python3 -m zipfile -e $folder/nvidia_cudnn_frontend-*.whl $folder/cudnn_frontend 2>/dev/null
}

# Open MPI as root and with more ranks than cores: version 4, then 5.
mpi_on_a_small_machine() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
  export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
  export PRTE_MCA_hwloc_default_binding_policy=none
}

# The project's own source files, NUL-separated; arguments are git pathspecs.
sources() {
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard -- "$@" | while IFS= read -r -d '' file; do
      [ -e "$file" ] && printf '%s\0' "$file"
    done
  else
    local pattern
    for pattern in "$@"; do
      find . -path ./build -prune -o -name "$pattern" -type f -print0 | sed -z 's#^\./##'
    done
  fi
}
