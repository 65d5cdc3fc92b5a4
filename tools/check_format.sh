#!/usr/bin/env bash
# Every C++ and CUDA file is as clang-format 14 writes it; --fix rewrites them. Other versions format
# differently, so without version 14 nothing is checked.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/machine.sh

formatter=
for candidate in clang-format-14 clang-format; do
  if command -v $candidate >/dev/null && [[ $(version_of $candidate) == 14.* ]]; then
    formatter=$candidate
    break
  fi
done
if [ -z "$formatter" ]; then
  echo "check_format: NOT RUN, it needs clang-format 14" >&2
  exit
fi

ours=('*.h' '*.cpp' '*.cu' '*.cuh')
if [ "${1:-}" = --fix ]; then
  sources "${ours[@]}" | xargs -0 -r $formatter -i --style=file
  exit
fi
bad=$(sources "${ours[@]}" | xargs -0 -r $formatter --dry-run --style=file 2>&1 |
  sed -n 's/^\([^:]*\):.*clang-format-violations.*/\1/p' | uniq)
if [ -n "$bad" ]; then
  printf '%s\n' "$bad"
  echo "check_format: tools/check_format.sh --fix mends these" >&2
  exit 1
fi
echo "check_format: good"
