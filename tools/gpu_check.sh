#!/usr/bin/env bash
# All CUDA tests and the benches of a machine with a GPU, most wanted first, in under 8 minutes; a table at the end.
#
#   tools/gpu_check.sh [PART...]      parts: tests train recurrences kernels decode attention lab; by default all of these;
#                                     large mechanisms peers losses parity sanitize: longer ones (gpu_check_more.sh)
#   tools/gpu_check.sh pack [BUILD]   stripped programs of BUILD (build/cuda) and the libraries they need beyond those of
#                                     CUDA and MPI, to .carry/gpu.tar.xz, for a machine without compilers
#
# Unpacks that archive if it is there, else builds. Logs go to $LOGS (build/gpu_logs), rows to $LOGS/rows.jsonl, for `tools/benchmarks.py
# add`. A part has a time limit of its own and never more than is left of $SECONDS_IN_ALL (460, builds not counted). Beside each bench runs
# its peer, if $PYTHON (.venv/bin/python, else python3) has torch and $PEERS is not off. Exit code 1: a test failed, or a bench of weft's.
# FILTER chooses tests, the regular expression RUNS benches and groups of sanitize. WEFT_DEVICE=cpu: all of it at tiny sizes, to see that it
# works.
set -euo pipefail
cd "$(dirname "$0")/.."

programs="tests/autograd/test_autograd tests/optim/test_optim tests/attention/test_attention tests/attention/step_run_test tests/layers/test_layers
  tests/distributed/distributed_collectives_test tests/distributed/distributed_rank_crossing_test
  tests/distributed/distributed_rank_conformance_test tests/tools/test_apply tests/training/training_decoder_test tests/training/training_graphs_test
  tests/optim/large_tensors_test"
every="tests train recurrences kernels decode attention lab" named="large mechanisms peers losses parity sanitize"

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
  # The programs hold the same kernels: a wide window keeps them once, a quarter of what gzip leaves.
  tar -C "$folder" -c . | xz -T1 --lzma2=preset=2,dict=256MiB >.carry/gpu.tar.xz
  rm -r "$folder"
  ls -l .carry/gpu.tar.xz
}

case ${1:-} in
  pack)
    pack "${2:-build/cuda}"
    exit
    ;;
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
parts=${*:-$every}
for word in $parts; do
  case " $every $named " in *" $word "*) ;; *)
    echo "gpu_check: no part is called $word; there are $every $named" >&2
    exit 64
    ;;
  esac
done

export WEFT_DEVICE=${WEFT_DEVICE:-cuda}
logs=${LOGS:-build/gpu_logs}
mkdir -p "$logs"
if [ -e "$logs/summary.txt" ]; then # of the run before, and nobody else's
  (cd "$logs" && awk '{ print $1 ".log" }' summary.txt | xargs -r rm -f --)
fi
rm -rf "$logs"/rows "$logs"/run-* "$logs"/{summary.txt,corpus.txt,rows.jsonl}
mkdir "$logs/rows"
if [ "$WEFT_DEVICE" = cpu ]; then
  bin=${BUILD:-build/cpu}
elif [ -e .carry/gpu.tar.xz ]; then
  bin=build/gpu_bin
  mkdir -p $bin
  xz -dc .carry/gpu.tar.xz | tar -C $bin -x
  export LD_LIBRARY_PATH=$PWD/$bin/lib:${LD_LIBRARY_PATH:-}
else
  bin=build/cuda
  cmake --preset cuda >/dev/null
  cmake --build --preset cuda --parallel
fi
# Where a program is: archives are flat.
built() { if [ -e "$bin/$(basename "$1")" ]; then echo "$bin/$(basename "$1")"; else echo "$bin/$1"; fi; }
weft=$(built tools/weft)
python=${PYTHON:-$(if [ -x .venv/bin/python ]; then echo .venv/bin/python; else command -v python3 || true; fi)}

start=$SECONDS
failed=0 count=10
left() { echo $((${SECONDS_IN_ALL:-460} - SECONDS + start)); }
wants() { case " $parts " in *" $1 "*) ;; *) false ;; esac }
report() { printf '%-26s %4d s  %s\n' "$@" | tee -a "$logs/summary.txt"; }

# is_over CODE BEGIN LIMIT: whether `timeout` ended it; who is killed before, as for memory, has failed.
is_over() { case $1 in 124 | 137) [ $((SECONDS - $2)) -ge "$3" ] ;; *) false ;; esac; }

is_chosen() { [[ $1 =~ ^(${RUNS:-.*})$ ]]; }
# bench NAME LIMIT COMMAND...   rows of its stdout to rows/NN-NAME.jsonl, the rest to NAME.log. 2: its time was over.
bench() {
  local name=$1 limit=$2 begin=$SECONDS code=0 verdict=good found rows=$logs/rows/$((++count))-$1.jsonl
  shift 2
  if ! is_chosen "$name"; then return 0; fi
  if [ "$(left)" -lt "$limit" ]; then limit=$(left); fi
  if [ "$limit" -lt 3 ]; then
    report "$name" 0 "NOT RUN: no time left"
    return 2
  fi
  printf '{"command": "%s"}\n' "$(sed "s#$weft#weft#g; s#$logs/##g; s#[\"\\\\]##g" <<<"$*")" >"$rows"
  timeout -k 3 "$limit" "$@" >>"$rows" 2>"$logs/$name.log" || code=$?
  found=$(grep -c '"ms"' "$rows" || true)
  if [ "$code$found" = 00 ]; then code=no; fi
  if is_over $code $begin "$limit"; then code=over; fi
  case $code in
    0) ;;
    no) verdict="FAILED: it printed no row" ;;
    over) verdict="stopped at its limit" ;;
    *) verdict="FAILED with exit code $code: $(tail -n 1 "$logs/$name.log" | cut -c1-100)" ;;
  esac
  report "$name" $((SECONDS - begin)) "$found rows, $verdict"
  case $code in
    0) return 0 ;;
    over) return 2 ;;
    *) return 1 ;;
  esac
}
ours() { bench "$@" || [ $? = 2 ] || failed=1; }
peer() { if [ -n "$peers" ]; then bench "$@" || true; fi; }

small='' cpu_size='' peers=''
if [ "$WEFT_DEVICE" = cpu ]; then small=--small cpu_size=--cpu-size; fi
if [ "${PEERS:-on}" != off ]; then
  if [ -n "$python" ] && "$python" -c 'import sys, torch; sys.exit(len(sys.argv) < 2 and not torch.cuda.is_available())' $small 2>/dev/null; then
    peers=1
  else
    echo "no peers: ${python:-no python} has no torch that sees the device"
  fi
fi

# Many small kernels keep one process waiting, so the long programs run in shards.
declare -A shards=([test_attention]=10 [test_apply]=6 [test_layers]=3 [distributed_rank_conformance_test]=4)
run_shard() {
  local name=$1 path=$2 shard=$3 begin=$SECONDS code=0 log=$logs/$1.$3.log
  GTEST_TOTAL_SHARDS=${shards[$name]:-1} GTEST_SHARD_INDEX=$shard POISON=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
    timeout "${LIMIT:-220}" "$path" ${FILTER:+--gtest_filter="$FILTER"} >"$log" 2>&1 || code=$?
  report "$name.$shard" $((SECONDS - begin)) "$(grep -c '^\[       OK' "$log") passed, $(
    grep -c '^\[  FAILED  \] .*ms)$' "$log") failed$([ $code = 0 ] || echo ", FAILED with exit code $code")"
  return $code
}
tests() {
  local program name path shard pid pids=()
  for program in $programs; do
    name=$(basename "$program") path=$(built "$program")
    if [ ! -e "$path" ]; then
      report "$name" 0 "NOT RUN: it was not built"
      continue
    fi
    if [ "$name" = large_tensors_test ]; then continue; fi # it takes most of the memory: alone, behind the others
    for ((shard = 0; shard < ${shards[$name]:-1}; ++shard)); do
      run_shard "$name" "$path" $shard &
      pids+=($!)
    done
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  path=$(built tests/optim/large_tensors_test)
  if [ -e "$path" ]; then run_shard large_tensors_test "$path" 0 || failed=1; fi
}

# train_steps STEPS RUN ARGUMENTS...   a row of so many steps, of TOTAL; ends weft train then, before it saves gigabytes that nobody wants
# shellcheck disable=SC2317  # bash -c calls it
train_steps() {
  local steps=$1 run=$2 pid logged
  "$weft" train "${@:3}" run="$run" steps="${TOTAL:-100000}" log.every=1 eval.every=0 checkpoint.every=0 data.val=0 data.train="$corpus" >&2 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    logged=$(grep -c tokens_per_s "$run/metrics.jsonl" 2>/dev/null || true)
    if [ "${logged:-0}" -ge "$steps" ]; then
      kill -KILL "$pid"
      wait "$pid" || true
      "$python" tools/benchmarks.py rows "$run"
      return 0
    fi
    sleep 0.1
  done
  wait "$pid" && "$python" tools/benchmarks.py rows "$run" # it was through before anybody looked
}
# CORPUS, or BYTES (4 million) of generated text, for train_steps. As one document: after two blank lines another begins, and attention that
# sees no further than a short story would be measured beside PyTorch's, which sees the whole context.
corpus_for_training() {
  export -f train_steps
  export weft python corpus=${CORPUS:-$logs/corpus.txt}
  if [ -n "${CORPUS:-}" ]; then return; fi
  rm -f "$corpus"
  "$weft" corpus --bytes "$([ "$WEFT_DEVICE" = cpu ] && echo 300000 || echo "${1:-4000000}")" --out "$corpus"
  sed -i '/^$/d' "$corpus"
}
train() {
  local sizes=() contexts="1024 8192 32768" context recipe
  corpus_for_training
  if [ "$WEFT_DEVICE" = cpu ]; then
    contexts="128 256"
    sizes=(batch_tokens=2048 micro_tokens=512 'model.layers=[softmax*2]' model.width=96 model.heads=2 model.ffn=256 model.vocab=2048)
  else
    sizes=(batch_tokens=131072)
  fi
  for context in $contexts; do
    ours "train-softmax-$context" 25 bash -c 'train_steps "$@"' _ 8 "$logs/run-softmax-$context" recipes/124m/softmax.yaml \
      context="$context" "${sizes[@]}"
  done
  # shellcheck disable=SC2086
  peer train-torch 100 "$python" tools/peers/torch_train.py --context $contexts --seconds 5 $cpu_size
  if [ "$WEFT_DEVICE" = cpu ]; then return; fi
  for recipe in lightning gla; do
    ours "train-$recipe-8192" 20 bash -c 'train_steps "$@"' _ 8 "$logs/run-$recipe-8192" recipes/124m/$recipe.yaml context=8192 "${sizes[@]}"
  done
}

# gpu ROWS...: the same rows by weft and by PyTorch
gpu_flags=()
if [ "$WEFT_DEVICE" = cpu ]; then gpu_flags=(--ms 0); fi
gpu() { ours "$1" "$2" "$weft" bench gpu "${@:3}" "${gpu_flags[@]}" --json; }
# shellcheck disable=SC2086
torch() { peer "$1" "$2" "$python" tools/peers/torch_gpu.py $small "${@:3}"; }

# The folder of the cuDNN that torch brings, unless weft's own is newer. Rows of attention are to show what our op costs over
# cuDNN, so both sides take the same. What it loads besides lies in that folder, too.
cudnn_of_torch() {
  local own theirs
  own=$(ldd "$weft" | awk '$1 ~ /^libcudnn\.so/ { print $3 }') || return 0
  if [ -z "$peers" ] || [ ! -e "$own" ]; then return; fi
  own=$("$python" -c 'import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).cudnnGetVersion())' "$own") || return 0
  theirs=$("$python" -c '
import torch
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "/libcudnn.so" in line}
print(torch.backends.cudnn.version(), *loaded)' 2>/dev/null) || return 0
  if [ "${theirs#* }" != "$theirs" ] && [ "${theirs%% *}" -ge "$own" ]; then dirname "${theirs#* }"; fi
}

source tools/gpu_check_more.sh
for part in tests train $named; do
  if ! wants "$part"; then continue; fi
  if [ -z "$python" ] && [ "$part" != tests ] && [ "$part" != sanitize ]; then
    report "$part" 0 "NOT RUN: its rows need python3"
  else
    "$part"
  fi
done
if wants recurrences; then
  gpu recurrences 30 recurrence
  # shellcheck disable=SC2086
  peer recurrences-fla 100 "$python" tools/peers/recurrences.py $small --few --seconds 45 ema lightning gla
fi
if wants kernels; then
  gpu kernels 40 memory loss small products step
  torch kernels-torch 80 memory loss products step
fi
if wants decode; then
  if [ "$WEFT_DEVICE" = cpu ]; then
    ours decode 20 "$weft" bench decode tiny --steps 3 --json
  else
    ours decode 60 "$weft" bench decode 1.3B softmax hybrid --steps 20 --json
  fi
fi
if wants attention; then
  before=${LD_LIBRARY_PATH:-} cudnn=$(cudnn_of_torch)
  if [ -n "$cudnn" ]; then export LD_LIBRARY_PATH=$cudnn${before:+:$before}; fi
  gpu attention 60 attention
  export LD_LIBRARY_PATH=$before
  torch attention-torch 40 attention
fi
if wants lab; then
  if [ "$WEFT_DEVICE" = cpu ] || [ -z "$peers" ]; then
    report lab 0 "NOT RUN: it needs a GPU, and torch"
  else
    LAB_LIBRARY=$PWD/$(built tools/lab/libweft_lab.so)
    export LAB_LIBRARY
    ours lab-linear 20 "$python" tools/lab/linear_attention.py time --json
    ours lab-delta 20 "$python" tools/lab/delta_rule.py quick --json
    ours lab-ema 20 "$python" tools/lab/ema.py time --json
  fi
fi

rm -f "$logs/corpus.txt"
echo
if [ -z "$(ls "$logs/rows")" ]; then
  :
elif command -v python3 >/dev/null; then
  python3 tools/benchmarks.py rows "$logs"/rows/*.jsonl >"$logs/rows.jsonl" || failed=1
  python3 tools/benchmarks.py show "$logs/rows.jsonl"
else
  cat "$logs/rows"/*.jsonl | tee "$logs/rows.jsonl"
fi
echo
grep -E 'FAILED|NOT RUN|limit' "$logs/summary.txt" || true
awk '/ passed, / { p += $4; f += $6 } END { if (p + f) printf "tests: %d passed, %d failed\n", p, f }' "$logs/summary.txt"
echo "$((SECONDS - start)) s; rows are in $logs/rows.jsonl: tools/benchmarks.py add keeps them"
exit $failed
