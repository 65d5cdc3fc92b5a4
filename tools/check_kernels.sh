#!/usr/bin/env bash
# Every kernel of the CPU that an op calls has one of the same name and arguments for CUDA: what the linker of a CUDA
# build would say, without compiling all the rest for it.
#   tools/check_kernels.sh CPU_BUILD CUDA_BUILD
set -euo pipefail
cd "$(dirname "$0")/.."

# kernels NAMESPACE KINDS FILES...: signatures of its functions whose symbols are of these kinds, as nm writes them.
kernels() {
  nm -C "${@:3}" 2>/dev/null | sed -n "s/^[0-9a-f ]* [$2] \(void \)\?weft::$1::\(.*(.*\)/\2/p" |
    sed -E 's/weft::(cpu|cuda):://g' | sort -u
}

mapfile -t ops < <(find "$1" -path "$1/tests" -prune -o -name '*.o' ! -name '*_cpu.cpp.o' -print)
mapfile -t cuda < <(find "$2" -name '*.cu.o' -o -name '*_cuda.cpp.o')
# What the processor can do, and what is compiled for both of its instruction sets, are the CPU's own.
called=$(kernels cpu U "${ops[@]}" | grep -vE '^(base::|avx512::|has_avx512\()')
missing=$(comm -23 <(echo "$called") <(kernels cuda TW "${cuda[@]}"))
if [ -n "$missing" ]; then
  printf 'check_kernels: no CUDA kernel for\n%s\n' "$missing" >&2
  exit 1
fi
echo "check_kernels: $(wc -l <<<"$called") kernels, each for both devices"
