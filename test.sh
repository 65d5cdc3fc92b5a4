#!/usr/bin/env bash
# Runs every test that this machine can run.
#
#   ./test.sh               style, build, tests
#   ./test.sh --full        the long tests too, then asan, tsan, tidy over all files, nvcc
#   ./test.sh asan tsan     only these parts
#
#   style   one-way includes, file sizes, clang-format, tables of benchmarks from their rows
#   build   the library, ./weft and all tests, for CUDA where there are a GPU and a toolkit
#   tests   what ctest knows, less what this machine lacks (a GPU, MPI)
#   asan    address and undefined behaviour sanitizers
#   tsan    thread sanitizer on autograd, attention and distributed
#   tidy    clang-tidy on changed files
#   nvcc    compiles every .cu and looks for a kernel of each op in it; needs no GPU
#
# ctest labels: gpu and mpi say what a test needs, full is for --full, slow stays out of sanitizer builds.
set -uo pipefail
cd "$(dirname "$0")" || exit
source tools/machine.sh

full=''
parts=()
for argument in "$@"; do
  case $argument in
    --full) full=1 ;;
    style | build | tests | asan | tsan | tidy | nvcc) parts+=("$argument") ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "test.sh: unknown argument $argument (see ./test.sh --help)" >&2
      exit 64
      ;;
  esac
done
if [ ${#parts[@]} = 0 ]; then
  parts=(style build tests)
  if [ -n "$full" ]; then parts+=(asan tsan tidy nvcc); fi
fi

preset=cpu
if find_toolkit && has_gpu; then preset=cuda; fi

configure() { cmake --preset "$1" -DWEFT_WERROR="${WEFT_WERROR:-OFF}" "${@:2}" >/dev/null; }
# In CI, where nobody edits, several files are compiled as one, which takes less time.
together=(${CI:+-DCMAKE_UNITY_BUILD=ON})
compile() { cmake --build --preset "$1" --parallel "$(jobs)" "${@:2}"; }

# run_tests PRESET SKIPPED_LABELS [ctest arguments]
run_tests() {
  WEFT_FULL=$full ctest --preset "$1" --label-exclude "^($2)\$" --no-tests=error \
    --parallel $((($(nproc) + 1) / 2)) "${@:3}"
}

# Sanitizers make a test ten times as long. In CI they run every eighth test of each program; here, all.
sampled() {
  if [ -n "${CI:-}" ]; then
    GTEST_TOTAL_SHARDS=8 GTEST_SHARD_INDEX=0 "$@"
  else
    "$@"
  fi
}

part_style() {
  local failed=0
  tools/check_imports.sh || failed=1
  tools/check_format.sh || failed=1
  if has python3; then
    python3 tools/benchmarks.py check || failed=1
  else
    echo "benchmarks: NOT RUN, it needs python3"
  fi
  return $failed
}

part_build() { configure $preset "${together[@]}" && compile $preset; }

part_tests() {
  local skipped=none
  if [ -z "$full" ]; then skipped+='|full'; fi
  if [ $preset != cuda ]; then skipped+='|gpu'; fi
  if ! has mpirun; then skipped+='|mpi'; fi
  run_tests $preset "$skipped"
  local code=$?
  case $skipped in *gpu*) echo "not run here: what needs a GPU and a CUDA toolkit" ;; esac
  case $skipped in *mpi*) echo "not run here: what needs mpirun" ;; esac
  return $code
}

part_asan() { configure asan && compile asan && sampled run_tests asan 'full|slow|gpu|mpi'; }

part_tsan() {
  configure tsan || return
  local folder targets=() names=
  for folder in autograd attention distributed; do
    if [ -e build/tsan/tests/$folder/CTestTestfile.cmake ]; then
      targets+=("tests/$folder/all")
      names+=$(ctest --test-dir build/tsan/tests/$folder -N | sed -n 's/^ *Test *#[0-9]*: \(.*\)/|\1/p' | tr -d '\n')
    fi
  done
  if [ -z "$names" ]; then
    echo "tsan: no tests in these folders"
    return
  fi
  compile tsan --target "${targets[@]}" && sampled run_tests tsan 'full|slow|gpu|mpi' --tests-regex "^(${names#|})\$"
}

part_tidy() {
  configure $preset -B build/tidy && tools/check_tidy.sh ${full:+--all} build/tidy
}

part_nvcc() {
  local wanted built
  wanted=$(sources '*.cu' | tr '\0' '\n' | sort)
  if [ -z "$wanted" ]; then
    echo "nvcc: no .cu file"
    return
  fi
  if ! find_toolkit; then
    echo "nvcc: NOT RUN, there is no CUDA toolkit here"
    return
  fi
  fetch_cudnn_frontend || echo "nvcc: attention by cuDNN is left out, the headers of its front end are not here"
  # One architecture is enough to see that the code compiles.
  configure cuda ${CI:+-DCMAKE_CUDA_ARCHITECTURES=90a-real} || return
  local objects
  objects=$(ninja -C build/cuda -t targets all | sed -nE 's/(.*(\.cu|_cudnn\.cpp)\.o): .*/\1/p')
  built=$(printf '%s\n' "$objects" | sed -E 's#CMakeFiles/[^/]*\.dir/##; s#\.o$##' | sort -u)
  local forgotten
  forgotten=$(comm -23 <(printf '%s\n' "$wanted") <(printf '%s\n' "$built"))
  if [ -n "$forgotten" ]; then
    echo "nvcc: no CMakeLists.txt builds ${forgotten//$'\n'/ }"
    return 1
  fi
  # shellcheck disable=SC2086
  compile cuda --target $objects weft_lab weft_lab_attention || return
  if [ -e build/cpu/autograd/libweft_autograd.a ]; then tools/check_kernels.sh build/cpu build/cuda; fi
}

mpi_on_a_small_machine
case " ${parts[*]} " in
  *' build '* | *' asan '* | *' tsan '*) install_missing "$build_packages" ;;
esac
failed=()
for part in "${parts[@]}"; do
  echo "== $part"
  "part_$part" || failed+=("$part")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "test.sh: failed: ${failed[*]}" >&2
  exit 1
fi
