#!/usr/bin/env bash
# The tests of a CUDA build on a machine with a GPU, all programs at once, and a line for each.
#
#   tools/gpu_check.sh pack [BUILD]   stripped programs of BUILD (build/cuda) and the libraries they need beyond
#                                     those of CUDA and MPI, to .carry/gpu.tar.gz, for a machine without compilers
#   tools/gpu_check.sh [LOGS]         unpacks that archive if it is there, else builds; runs; logs go to LOGS
set -euo pipefail
cd "$(dirname "$0")/.."

programs="tests/autograd/test_autograd tests/optim/test_optim tests/attention/test_attention tests/layers/test_layers
  tests/tools/test_apply"

pack() {
  local build=$1 folder program
  folder=$(mktemp -d)
  mkdir -p "$folder/lib" .carry
  for program in $programs tools/weft tools/lab/libweft_lab_attention.so tools/lab/libweft_lab.so; do
    [ -e "$build/$program" ] || continue
    strip -o "$folder/$(basename "$program")" "$build/$program"
    ldd "$build/$program" | awk '{ print $3 }' |
      grep -E '/lib(yaml-cpp|hdf5|sz|aec|pcre2|utf8proc|xxhash|zstd|gtest)' | xargs -r -I{} cp -Ln {} "$folder/lib/" || true
  done
  tar -C "$folder" -c . | gzip -9 > .carry/gpu.tar.gz
  rm -r "$folder"
  ls -l .carry/gpu.tar.gz
}

if [ "${1:-}" = pack ]; then
  pack "${2:-build/cuda}"
  exit
fi

logs=${1:-build/gpu_logs}
mkdir -p "$logs"
if [ -e .carry/gpu.tar.gz ]; then
  bin=build/gpu_bin
  mkdir -p $bin
  gzip -dc .carry/gpu.tar.gz | tar -C $bin -x
  export LD_LIBRARY_PATH=$PWD/$bin/lib:${LD_LIBRARY_PATH:-}
else
  bin=build/cuda
  cmake --preset cuda >/dev/null
  cmake --build --preset cuda --parallel
fi

# Many small kernels keep one process waiting, so the long programs run in shards.
export WEFT_DEVICE=cuda POISON=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
declare -A shards=([test_attention]=10 [test_apply]=6 [test_layers]=3)
pids=()
run_shard() {
  local name=$1 path=$2 shard=$3 start=$SECONDS code=0
  local log=$logs/$name.$shard
  GTEST_TOTAL_SHARDS=${shards[$name]:-1} GTEST_SHARD_INDEX=$shard timeout "${LIMIT:-240}" "$path" \
    ${FILTER:+--gtest_filter="$FILTER"} >"$log.log" 2>&1 || code=$?
  printf '%-18s exit %3d  %4d s  %5d passed %5d failed\n' "$name.$shard" $code $((SECONDS - start)) \
    "$(grep -c '^\[       OK' "$log.log")" "$(grep -c '^\[  FAILED  \] .*ms)$' "$log.log")" >"$log.line"
  return $code
}
for program in $programs; do
  name=$(basename "$program")
  path=$bin/$name
  [ -e "$path" ] || path=$bin/$program
  [ -e "$path" ] || continue
  for ((shard = 0; shard < ${shards[$name]:-1}; ++shard)); do
    run_shard "$name" "$path" $shard &
    pids+=($!)
  done
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
cat "$logs"/*.line
exit $failed
