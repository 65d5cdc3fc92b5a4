#!/usr/bin/env bash
# Every kernel of the CPU has one of the same name and arguments for CUDA: what the linker of a CUDA build would
# say, without compiling all the rest for it.
#   tools/check_kernels.sh CPU_BUILD CUDA_BUILD
set -euo pipefail
cd "$(dirname "$0")/.."

# kernels NAMESPACE FILES...: their signatures. Those of the CPU's own products and members of classes are no kernels.
kernels() {
  nm -C --defined-only "${@:2}" 2>/dev/null |
    sed -n "s/^[0-9a-f]* [TW] \(void \)\?weft::$1::\(.*(.*\)/\2/p" |
    sed -E 's/weft::(cpu|cuda):://g' |
    grep -vE '^(\(anonymous|base::|avx512::|multiply<|has_avx512|[A-Z][A-Za-z]*(<[^>]*>)?::)' | sort -u
}

mapfile -t cpu < <(find "$1" -name '*_cpu.cpp.o')
mapfile -t cuda < <(find "$2" -name '*.cu.o' -o -name '*_cuda.cpp.o')
missing=$(comm -23 <(kernels cpu "${cpu[@]}") <(kernels cuda "${cuda[@]}"))
if [ -n "$missing" ]; then
  printf 'check_kernels: no CUDA kernel for\n%s\n' "$missing" >&2
  exit 1
fi
echo "check_kernels: $(kernels cpu "${cpu[@]}" | wc -l) kernels, each for both devices"
