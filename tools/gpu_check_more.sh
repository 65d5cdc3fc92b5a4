# shellcheck shell=bash disable=SC2154,SC2034
# Parts of tools/gpu_check.sh that run only if they are named: what takes long. Sourced by it.
# shellcheck disable=SC2317  # wants calls them

# trained NAME LIMIT STEPS RECIPE ARGUMENTS...   a row of so many steps of a recipe; what its start took
trained() {
  ours "train-$1" "$2" bash -c 'train_steps "$@"' _ "$3" "$logs/run-$1" "recipes/$4.yaml" "${@:5}"
  if [ ! -e "$logs/train-$1.log" ]; then return 0; fi # it was not begun
  sed -nE 's/.*(first step [0-9.]+ s after the start.*)/    \1/p' "$logs/train-$1.log" | tee -a "$logs/summary.txt"
}

tiny=(batch_tokens=1024 micro_tokens=512 context=256 model.width=64 model.ffn=128 model.vocab=2048 model.heads=8)
# In place of a recipe's sizes on a CPU; mechanisms that have settings of their own there keep them.
sized() {
  if [ "$WEFT_DEVICE" != cpu ]; then
    printf '%s\n' "$@"
  else
    printf '%s\n' "${tiny[@]}"
  fi
}
# sized_training NAME LIMIT STEPS RECIPE MECHANISM ARGUMENTS...
sized_training() {
  local name=$1 limit=$2 steps=$3 recipe=$4 mechanism=$5 all=()
  mapfile -t all < <(sized "${@:6}")
  if [ "$WEFT_DEVICE" = cpu ]; then
    all+=("model.layers=[$mechanism*2]") steps=3
    if [ -n "${TOTAL:-}" ]; then TOTAL=3; fi
  fi
  trained "$name" "$limit" "$steps" "$recipe" "${all[@]}"
}

# 1.3 billion weights; 124 million beside the sum of its floors; linear models as texts grow.
large() {
  local context recipe one=batch_tokens=65536 two=batch_tokens=131072
  corpus_for_training
  for context in 2048 8192; do sized_training 1b-softmax-$context 40 6 1b/softmax softmax context=$context $one; done
  # shellcheck disable=SC2086
  peer train-torch-1b 130 "$python" tools/peers/torch_train.py --size 1.3B --context 2048 8192 --by-layer --warm 2 --steps 4 $cpu_size
  gpu floors 40 floors
  for context in 1024 8192 32768; do sized_training 124m-softmax-$context 15 8 124m/softmax softmax context=$context $two; done
  # shellcheck disable=SC2086
  peer train-torch-124m 90 "$python" tools/peers/torch_train.py --context 1024 8192 32768 --by-layer --warm 2 --steps 5 $cpu_size
  sized_training 1b-softmax-32768 40 5 1b/softmax softmax context=32768 micro_tokens=32768 $one
  sized_training 1b-softmax-131072 75 1 1b/softmax softmax context=131072 micro_tokens=131072 $two model.checkpointing=block
  for recipe in transnormer_llm gla; do
    for context in 8192 32768; do
      sized_training 1b-$recipe-$context 30 6 1b/$recipe $recipe context=$context micro_tokens=32768 $one
    done
  done
  for recipe in lightning transnormer_llm; do
    for context in 8192 32768 131072; do
      sized_training 124m-$recipe-$context 15 8 124m/$recipe $recipe context=$context micro_tokens=$((context > 32768 ? context : 32768)) $two
    done
  done
  for recipe in transnormer_llm gla; do # the same micro-batch and checkpointing for all lengths
    for context in 2048 16384 131072; do
      sized_training 1b-$recipe-$context-flat 35 4 1b/$recipe $recipe context=$context micro_tokens=131072 $two model.checkpointing=block
    done
  done
}

# flash-linear-attention's wheels, unpacked where python finds them; a wheel is an archive.
fetch_wheels() {
  local wheel site=$PWD/build/peer_site
  if "$python" -c 'import fla' 2>/dev/null; then return; fi
  for wheel in "${WHEELS:-.carry/whl}"/*.whl; do
    if [ -e "$wheel" ]; then "$python" -m zipfile -e "$wheel" "$site"; fi
  done
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

# Whole training steps of other libraries and of our own PyTorch.
peers() {
  local one=(context=8192 micro_tokens=32768 batch_tokens=131072)
  corpus_for_training
  fetch_wheels
  sized_training peers-lightning 15 8 124m/lightning lightning "${one[@]}"
  sized_training peers-gla 20 8 124m/gla gla "${one[@]}"
  # shellcheck disable=SC2016  # bash -c expands them; side by side until they take times
  peer fla 230 bash -c 'python=$0 turn=$1 small=$2 cpu_size=$3; $python tools/peers/recurrences.py $small --few --seconds 105 --turn $turn gla --shape "B2 T16384 H16 D128" & other=$!; code=0; $python tools/peers/fla_train.py lightning gla --few --seconds 105 --turn $turn --steps 4 $cpu_size || code=$?; wait $other && exit $code' "$python" "$logs/turn" "$small" "$cpu_size"
  gpu recurrences 30 recurrence
}

# start_row NAME RUN ARGUMENTS...   a row of what a process of weft, launched by $LAUNCHER, took to the end of its first step,
# from what it says of it and the time that the launcher takes for nothing
# shellcheck disable=SC2317  # bash -c calls it
start_row() {
  local said begin=$EPOCHREALTIME launching=0
  if [ -n "${LAUNCHER:-}" ]; then
    $LAUNCHER true
    launching=$(((${EPOCHREALTIME//[.,]/} - ${begin//[.,]/}) / 1000))
  fi
  # shellcheck disable=SC2086  # a launcher and its arguments
  said=$(${LAUNCHER:-} "$weft" train recipes/124m/softmax.yaml run="$2" steps=1 "${@:3}" eval.every=0 data.val=0 data.train="$corpus" 2>&1 | tee /dev/stderr |
    sed -nE 's/.*first step ([0-9.]+) s after the start: (.*)/\1 \2/p')
  "$python" - "$1" "$2/environment.json" "$said" $launching <<'END'
import json, sys
name, environment, said, launching = sys.argv[1:]
seconds, parts = said.split(" ", 1)
parts += f"; the launcher {launching} ms" if int(launching) else ""
with open(environment) as f:
    where = json.load(f)
print(json.dumps({"weft": "bench/1", "name": name, "shape": "124M, 32768 tokens", "dtype": "bf16", "ms": round(1000 * float(seconds)) + int(launching),
                  "note": "seconds: " + parts, "device": where["device"], "commit": where["commit"], "date": where["start_time"][:10]}))
END
}

# A start with nothing cached and again; every mechanism at 124 million weights and a context of 8192; titans_mac and mega beside their peers.
mechanisms() {
  local recipe cached
  corpus_for_training
  fetch_wheels
  export -f start_row
  if [ "$WEFT_DEVICE" != cpu ]; then # where a start is no more than a step
    for cached in nothing products; do
      XDG_CACHE_HOME=$logs/cache ours "start-$cached" 20 bash -c 'start_row "$@"' _ "start to the first step, $cached cached" "$logs/run-start-$cached" \
        batch_tokens=32768 checkpoint.every=0
    done
    if command -v mpirun >/dev/null; then
      XDG_CACHE_HOME=$logs/cache LAUNCHER="mpirun --allow-run-as-root --oversubscribe --bind-to none -n 1" ours start-mpirun 20 bash -c 'start_row "$@"' _ \
        "start to the first step, under mpirun" "$logs/run-start-mpirun" batch_tokens=32768 checkpoint.every=0
    fi
  fi
  for recipe in transnormer_llm gated_delta moh mega sparsek; do
    sized_training 124m-$recipe 20 5 124m/$recipe "${recipe/gated_delta/gated_delta_rule}" context=8192 micro_tokens=16384 batch_tokens=32768
  done
  # shellcheck disable=SC2086
  peer mega-torch 50 "$python" tools/peers/mega_torch.py --steps 4 $cpu_size
  sized_training 124m-titans_mac 25 5 124m/titans_mac titans_mac context=8192 micro_tokens=32768 batch_tokens=32768
  sized_training titans_mac-2 15 5 124m/titans_mac titans_mac 'model.layers=[titans_mac*2]' context=8192 micro_tokens=16384 batch_tokens=16384
  if [ "$WEFT_DEVICE" != cpu ]; then peer titans-torch 60 "$python" tools/peers/titans_torch.py --layers 2 --steps 3; fi
}

# What recipes reach: RECIPES (124m 340m 1b), TOKENS (4 million; 1 million of 1.3 billion weights) of the text or shard CORPUS, else of
# generated text, with the recipe's schedule drawn together to that length: 32 steps.
losses() {
  local size path recipe batch steps
  corpus_for_training 20000000
  for size in ${RECIPES:-124m 340m 1b}; do
    batch=$([ "$size" = 1b ] && echo 32768 || echo 131072)
    steps=$((${TOKENS:-$([ "$size" = 1b ] && echo 1048576 || echo 4194304)} / batch))
    for path in recipes/"$size"/*.yaml; do
      recipe=$(basename "$path" .yaml)
      TOTAL=$steps sized_training "loss-$size-$recipe" 120 "$steps" "$size/$recipe" "${recipe/gated_delta/gated_delta_rule}" \
        batch_tokens=$batch optim.warmup=$((steps / 4))
    done
  done
}

# 124 million weights beside PyTorch and fla, from the same weights on the same batches, 8,192 tokens a step: PARITY_TOKENS, one shard of
# what peers/parity_text.py makes, which STEPS (1000) steps read once; softmax also in f32. PARITY (softmax gla gated_delta) are the recipes. AGAIN: steps of
# the peer's second run, all by default. What torch_parity.py prints goes to parity-RECIPE.log.
parity() {
  local recipe context begin code other common rates flags norm_eps steps=${STEPS:-1000} sizes=(batch_tokens=8192 micro_tokens=8192)
  if [ ! -e "${PARITY_TOKENS:-}" ]; then
    report parity 0 "NOT RUN: PARITY_TOKENS names no shard of tokens"
    return
  fi
  fetch_wheels
  for recipe in ${PARITY:-softmax gla gated_delta}; do
    begin=$SECONDS code=0 other='' context=2048 flags=(--fla) norm_eps=1e-3 # of recurrent models: docs/benchmarks/parity.md
    if [ $recipe = gla ]; then norm_eps=1e-2; fi
    if [ $recipe = softmax ]; then context=1024 flags=() norm_eps=1e-6; fi
    if [ "$WEFT_DEVICE" = cpu ]; then
      sizes=(batch_tokens=512 micro_tokens=512 model.width=64 model.heads=2 model.ffn=128 model.vocab=2048 precision=f32)
      sizes+=("model.layers=[${recipe/gated_delta/gated_delta_rule}*2]")
      steps=3 context=128 flags=()
    else
      flags+=(--compile --again ${AGAIN:-})
    fi
    common=(data.train="$PARITY_TOKENS" data.val=0 data.shuffle=false eval.every=0 log.every=1 context="$context" model.norm_eps="$norm_eps" "${sizes[@]}")
    rates=(steps="$steps" optim.lr=1e-4 optim.warmup=$((steps / 5)) checkpoint.every=0)
    {
      if [ $recipe = softmax ]; then
        flags+=(--other "$logs/run-parity-f32")
        "$weft" train recipes/124m/softmax.yaml run="$logs/run-parity-f32" "${common[@]}" "${rates[@]}" precision=f32 &
        other=$!
      fi
      "$weft" train "recipes/124m/$recipe.yaml" run="$logs/run-parity-start-$recipe" "${common[@]}" steps=1 optim.lr=1e-30 optim.weight_decay=0 &&
        "$weft" train "recipes/124m/$recipe.yaml" run="$logs/run-parity-$recipe" "${common[@]}" "${rates[@]}" &&
        wait $other && # with none this waits for nothing
        "$python" tools/peers/torch_parity.py "$logs/run-parity-$recipe" "$logs/run-parity-start-$recipe" "$PARITY_TOKENS" "${flags[@]}" \
          --curves "$logs/parity-$recipe.npz"
    } >"$logs/parity-$recipe.log" 2>&1 || code=$?
    report "parity-$recipe" $((SECONDS - begin)) "$([ $code = 0 ] && grep '^{.*"name"' "$logs/parity-$recipe.log" | head -n 1 || echo "FAILED with exit code $code")"
  done
}

# Every kernel at a small and an odd shape: a group of tests a line, the longest first, with words of the files whose kernels
# racecheck watches: it follows a million accesses of shared memory a second, and what tests compare with need not be among them.
checked="options test_attention flash_attention MergeOptions.AgainstTheDefinition:MergeOptions.Gradients
channels test_attention channel_,segments Registry/LinearRunHeads.EqualTheDefinition/2
mma test_attention sweep_mma,segments Registry/LinearRunHeads.EqualTheDefinition/1
norms test_autograd weft RmsNorm.*:AddRmsNorm.*:LayerNorm.*:Norms.ColumnViewsEqualTheirCopies:Softmax.*:Swiglu.*:Rotary.Against*
decode test_attention attention_step,recurrent_step AttentionStep.*:RecurrentStep.*:ShiftWindow.*
runs step_run_test step_run StepRun.*
softmax test_attention flash_attention_hopper,flash_attention_tiles,merge_partials FlashAttention.*:MergePartials.*
delta test_attention delta_ *WideHeadsOfDeltaRule.OutputsAndGradients*
kept test_attention kept_ KeptAttention.AGpu*:KeptAttention.No*:SelectedAttention.*
updates test_optim weft *AdamWTest.EqualsTheScalarDefinition*:Muon.EqualsTheDefinition:GradientNorm.IsThe*:Ema.IsTheWeightedMean*
memory test_attention memory_ MemoryOps.AreTheRecurrences:MemoryOps.Gradients:MemoryOps.AMatrixLearnsChunkByChunk:MemoryOps.TokensAreTheirComposition
basic test_autograd weft Arrange.*:Reduce.OddShapes:Triangle.*:Elementwise.BroadcastValues:ShortConv.AgainstTheDefinition:SparseK.IsTheProjection:HeadLinear.EqualsAllHeadsMasked:CausalConvolution.AgainstTheDefinition
linear test_attention sweep_,segments,gate_gradient Registry/LinearRunHeads.EqualTheDefinition/0:Registry/LinearRunHeads.EqualTheDefinition/1
pieces test_attention channel_,segments Registry/LinearRunHeads.PiecesEqualTheWhole/2
segments test_attention sweep_,segments Registry/LinearRunHeads.PiecesEqualTheWhole/0:Registry/LinearRunHeads.PiecesEqualTheWhole/1
products test_autograd weft Gemm.*:Linear.*:Matmul.SharedRightOperand:Draw.*
rows test_autograd few_rows FewRows.*
gates test_autograd weft GatedRmsNorm.AgainstTheTwoOps:Gates.AgainstBasicOpsNearAndFar:Lrpe.AgainstBasicOps:Sglu.*
ring distributed_rank_crossing_test rank_crossing_ring RankCrossing.BytesOfAMerge
ends test_autograd weft Embedding.*:ProjectedCrossEntropy.AgainstTheDefinition:Sample.*:TopK.AgainstASort:TopK.RunningEqualsSortingAgain
wide test_attention sweep_wgmma_wide Registry/LinearRunHeads.WideOnesEqualTheDefinition/0:Registry/LinearRunHeads.WideOnesEqualTheDefinition/1
ema test_attention ema_ EmaRun.PiecesEqualTheWhole:EmaRun.MatricesEqualScalars:EmaCoefficients.EqualTheirComposition"

# The path of one of the programs of gpu_check.sh, by its name.
program_named() { tr -s ' ' '\n' <<<"$programs" | grep "/$1\$"; }
# sanitized TOOL GROUP PROGRAM WORDS FILTER: what compute-sanitizer says of these tests goes to TOOL-GROUP.log
sanitized() {
  local tool=$1 group=$2 path begin=$SECONDS code=0 limit=${LIMIT:-100} verdict='' log=$logs/$1-$2.log
  local poison=0 apart=0 few=1 kernels='' word options=()
  path=$(built "$(program_named "$3")")
  case $tool in
    memcheck) poison=1 apart=1 ;;
    racecheck)
      few=0 options=(--racecheck-report analysis) # 0: a gradient check's differences are more of the same launches
      for word in ${4//,/ }; do options+=(--kernel-name "kns=$word"); done
      ;;
    initcheck) apart=1 options=(--show-backtrace no) ;; # poison is a value too
  esac
  if [ "$group" = mma ]; then kernels=mma; fi
  FEW=$few APART=$apart POISON=$poison WEFT_KERNELS=$kernels OMP_NUM_THREADS=1 timeout -k 3 "$limit" compute-sanitizer \
    --tool "$tool" "${options[@]}" --demangle no --print-limit 100000 "$path" --gtest_filter="$5" >"$log" 2>&1 || code=$?
  # A killed program's findings so far count all the same.
  if is_over $code $begin "$limit"; then
    verdict=', stopped at its limit'
  elif [ $code != 0 ]; then
    verdict=", FAILED with exit code $code"
  fi
  report "$tool-$group" $((SECONDS - begin)) "$(grep -c '^\[       OK' "$log") passed, $(grep -c '^\[  FAILED  \] .*ms)$' "$log") failed, $(
    sed -nE 's/^=+ ((ERROR|RACECHECK) SUMMARY: .*)/\1/p' "$log" | tail -n 1)$verdict"
}
sanitize() {
  local tool group program words filter running=0 programs_of=()
  if ! command -v compute-sanitizer >/dev/null; then PATH=$PATH:/usr/local/cuda/bin:/opt/nvidia/compute-sanitizer; fi
  if ! command -v compute-sanitizer >/dev/null; then
    report sanitize 0 "NOT RUN: there is no compute-sanitizer"
    return
  fi
  if ! timeout 60 compute-sanitizer "$(built tests/autograd/test_autograd)" --gtest_filter=RmsNorm.AgainstTheDefinition >"$logs/probe.log" 2>&1 &&
    grep -qi 'not supported' "$logs/probe.log"; then
    report sanitize 0 "NOT RUN: $(grep -im1 'not supported' "$logs/probe.log")"
    return
  fi
  for tool in ${TOOLS:-racecheck memcheck initcheck synccheck}; do
    while read -r group program words filter; do
      if ! is_chosen "$group"; then continue; fi
      if [ "$tool-$group" = racecheck-runs ]; then
        report "$tool-$group" 0 "NOT RUN: so slow that blocks take each other for dead, after 2^24 looks"
        continue
      fi
      if [ "$(left)" -lt 10 ]; then
        report "$tool-$group" 0 "NOT RUN: no time left"
        continue
      fi
      sanitized "$tool" "$group" "$program" "$words" "$filter" &
      if ((++running >= ${JOBS:-$((($(nproc) * 3 + 3) / 4))})); then
        wait -n || true
        ((running--))
      fi
    done <<<"$checked"
  done
  wait
  # Races are for a person to judge; what leaves a tensor, or meets a barrier wrongly, is a fault.
  if grep -lE '^=+ ERROR SUMMARY: [1-9]' "$logs"/{memcheck,synccheck}-*.log >/dev/null 2>&1; then failed=1; fi
  if grep -qE '^[a-z]+check-.*, FAILED with' "$logs/summary.txt"; then failed=1; fi
  if [ -z "$python" ]; then return; fi
  for program in $(awk '{ print $2 }' <<<"$checked" | sort -u); do programs_of+=(--program="$(built "$(program_named "$program")")"); done
  find "$logs" -name '*check-*.log' -print0 | sort -z |
    xargs -0 "$python" tools/sanitizer_summary.py "${programs_of[@]}" 2>&1 | tee "$logs/sanitizer.txt" || true
}
