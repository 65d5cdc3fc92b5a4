#!/usr/bin/env bash
# clang-tidy, with the checks of .clang-tidy, on what changed lately: uncommitted files first, then those of
# the last ten commits (of a merge, all that it brings), newest first, until the time is up.
#
#   tools/check_tidy.sh [--all] BUILD      BUILD holds compile_commands.json; --all: every file, no limit
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/machine.sh

all=
if [ "${1:-}" = --all ]; then
  all=1
  shift
fi
build=$1
if ! command -v clang-tidy >/dev/null; then
  echo "check_tidy: NOT RUN, there is no clang-tidy here" >&2
  exit
fi

if [ ! -e "$build/compile_commands.json" ]; then
  echo "check_tidy: no $build/compile_commands.json, configure first" >&2
  exit 1
fi

# A header is checked through the .cpp beside it.
candidates() {
  if [ -n "$all" ] || ! git rev-parse HEAD >/dev/null 2>&1; then
    sources '*.cpp' | tr '\0' '\n'
  else
    { git status --porcelain --untracked-files=all | cut -c 4-; git log -10 --first-parent -m --format= --name-only; } |
      sed -n 's/\.\(h\|cpp\)$/.cpp/p' | awk '!seen[$0]++'
  fi
}

known=$(sed -n "s#^ *\"file\": \"$PWD/\(.*\)\",\{0,1\}\$#\1#p" "$build/compile_commands.json")
mapfile -t files < <(candidates | grep -v '^tests/' | grep -Fx "$known" || true)

seconds=180
if [ -n "$all" ]; then seconds=100000; fi
export deadline=$(($(date +%s) + seconds)) build
look_at() {
  if [ "$(date +%s)" -gt "$deadline" ]; then
    echo "not looked at, the time is up: $1"
    return
  fi
  # Warnings in other projects' headers are counted on stderr, and are not ours.
  clang-tidy --quiet -p "$build" --warnings-as-errors='*' "$1" 2> >(grep -v 'warnings\? generated' >&2)
}
export -f look_at
printf '%s\n' "${files[@]}" | xargs -r -P "$(jobs)" -I{} bash -c 'look_at {}' ||
  { echo "check_tidy: see above" >&2; exit 1; }
echo "check_tidy: ${#files[@]} files"
