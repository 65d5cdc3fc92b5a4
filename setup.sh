#!/usr/bin/env bash
# Installs what is missing, builds ./weft, trains the quickstart recipe on real text, and shows its sample.
#
#   ./setup.sh              all of it; CUDA kernels where there are a GPU and a toolkit
#   ./setup.sh --no-train   stop after the build
#   ./setup.sh --cpu        no CUDA, whatever is here
#   ./setup.sh --cuda       CUDA kernels although there is no GPU here (a login node)
#
# Run it as root or as someone who may use sudo; without either it works with what is installed.
set -euo pipefail
cd "$(dirname "$0")"
source tools/machine.sh

train=yes device=auto
for argument in "$@"; do
  case $argument in
    --no-train) train=no ;;
    --cpu) device=cpu ;;
    --cuda) device=cuda ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "setup.sh: unknown option $argument (see ./setup.sh --help)" >&2
      exit 64
      ;;
  esac
done

left_out=() # said at the very end, where it is seen

# The CUDA preset builds one program for both: it computes on a GPU where there is one.
choose_preset() {
  preset=cpu
  if [ "$device" = cpu ]; then return; fi
  if ! find_toolkit; then
    if [ "$device" = cuda ]; then
      echo "setup.sh: --cuda needs nvcc on PATH, in \$CUDA_HOME or in /usr/local/cuda" >&2
      exit 64
    fi
    if has_gpu; then
      left_out+=("the CUDA kernels: there is a GPU, but no toolkit (nvcc). NVIDIA's package repository has it:" \
        "  apt-get install cuda-toolkit-13-0, then ./setup.sh again")
    fi
    return
  fi
  if [ "$device" = auto ] && ! has_gpu; then
    left_out+=("the CUDA kernels: there is a toolkit, but no GPU. To build for another machine: ./setup.sh --cuda")
    return
  fi
  preset=cuda
}

# Attention by cuDNN needs the library and the headers of its front end.
add_cudnn() {
  local toolkit
  toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
  if ! has_header cudnn_version.h && [ ! -e "$toolkit/include/cudnn_version.h" ]; then
    left_out+=("attention by cuDNN (our own kernels are used instead): cuDNN 9 is not here. NVIDIA's repository has it:" \
      "  apt-get install cudnn9-cuda-13, then ./setup.sh again")
  elif ! fetch_cudnn_frontend; then
    left_out+=("attention by cuDNN (our own kernels are used instead): the headers of its front end. To add them:" \
      "  $cudnn_frontend_download && ./setup.sh")
  fi
}

check_tools() {
  if ! has cmake; then
    echo "setup.sh: CMake 3.25 or newer is needed, found: $(version_of cmake || true)" >&2
    echo "  python3 -m venv .venv && .venv/bin/pip install cmake && PATH=\$PWD/.venv/bin:\$PATH ./setup.sh" >&2
    exit 1
  fi
  local version
  version=$("${CXX:-g++}" -dumpversion 2>/dev/null || echo 0)
  if ! at_least 12 "$version" && [[ ${CXX:-g++} != *clang* ]]; then
    echo "setup.sh: g++ 12 or newer is needed, found: $version; CXX=g++-12 ./setup.sh picks another one" >&2
    exit 1
  fi
}

build() {
  mkdir -p build
  if [ "$preset" = cuda ]; then add_cudnn; fi
  if ! cmake --preset "$preset" -DWEFT_WERROR="${WEFT_WERROR:-OFF}" >build/configure.log 2>&1; then
    tail -n 30 build/configure.log >&2
    exit 1
  fi
  cmake --build --preset "$preset" --target weft --parallel "$(jobs)"
  ln -sfn "build/$preset/tools/weft" weft
}

# One verse a line, a blank line between chapters: 4.1 MB of English.
prepare_text() {
  if [ -s data/kjv.txt ]; then return; fi
  mkdir -p data
  if has bible; then
    bible -f gen1:1-rev22:21 </dev/null 2>/dev/null | awk '
      { chapter = $1; sub(/:.*/, "", chapter)
        if (NR > 1 && chapter != last) print ""
        last = chapter; sub(/^[^ ]+ /, ""); print }' >data/kjv.txt.part || true
    if [ "$(wc -c <data/kjv.txt.part)" -gt 4000000 ]; then
      mv data/kjv.txt.part data/kjv.txt
      return
    fi
    rm data/kjv.txt.part
  fi
  left_out+=("the real training text: generated text stands in. apt-get install bible-kjv, rm data/kjv.txt," \
    "  and ./setup.sh again")
  ./weft corpus --bytes 4500000 --seed 1 --out data/kjv.txt
}

install_missing "$build_packages"
check_tools
choose_preset
build
if [ "$train" = yes ]; then
  prepare_text
  ./weft train recipes/quickstart.yaml --resume auto
  if [ -s runs/quickstart/samples.txt ]; then
    echo
    tail -n 20 runs/quickstart/samples.txt
  fi
fi

cat <<'NEXT'

Try next:
  ./weft generate runs/quickstart --prompt "And God said"
  ./weft ls
  ./weft cp quickstart mine.yaml && ./weft validate mine.yaml
NEXT
if [ ${#left_out[@]} -gt 0 ]; then
  printf '\nLEFT OUT: ' >&2
  printf '%s\n' "${left_out[@]}" >&2
fi
