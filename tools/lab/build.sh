#!/bin/sh
# Builds .lab/liblab.so from attention/kernels and the C names in this folder. ARCH="80 90a" for both targets.
set -e
cd "$(dirname "$0")/../.."
mkdir -p .lab
targets=
for arch in ${ARCH:-90a}; do targets="$targets -gencode=arch=compute_$arch,code=sm_$arch"; done
objects=
for source in attention/kernels/*.cu tools/lab/delta_rule.cu tools/lab/ema.cu tools/lab/linear_attention.cu; do
  object=.lab/$(basename "$(dirname "$source")")_$(basename "$source" .cu).o
  if [ ! -e "$object" ] || [ -n "$(find attention/kernels autograd "$source" -newer "$object" -name '*.*')" ]; then
    nice nvcc -std=c++20 -O3 --expt-relaxed-constexpr $targets -I. -Xcompiler -fPIC,-Wall -c "$source" -o "$object"
  fi
  objects="$objects $object"
done
nvcc -shared $targets $objects -o .lab/liblab.so
