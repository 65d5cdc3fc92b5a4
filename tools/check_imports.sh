#!/usr/bin/env bash
# The house rules that grep can hold: imports point one way, headers and .cu files stay light, files stay short.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/machine.sh

# shellcheck disable=SC2016
check='
BEGIN {
  # Which folders a folder may include. The longest matching folder name counts.
  may["autograd"] = "autograd"
  may["attention"] = "attention autograd"
  may["layers"] = "layers attention autograd"
  may["optim"] = "optim autograd"
  may["distributed"] = "distributed layers attention optim autograd"
  data = "training/data training/checkpoint training/recipe"   # these know no model
  may["training/data"] = may["training/checkpoint"] = may["training/recipe"] = data " autograd"
  may["training/tasks"] = "training/tasks training/data autograd"
  may["training"] = "training training/tasks " data " distributed layers attention optim autograd"
  may["tools"] = "tools " may["training"]
  may["tests"] = "tests " may["tools"]
  heavy = "^((nlohmann|yaml-cpp|CLI|fmt|spdlog|hdf5|mpi)[./]|cudnn)"
}

function say(message) { print FILENAME ":" FNR ": " message; failed = 1 }

function folder_of(path,   folder) {
  folder = path
  while (folder != "" && !(folder in may)) if (!sub("/[^/]*$", "", folder)) folder = ""
  return folder
}

FNR == 1 {
  folder = folder_of(FILENAME)
}
FNR == 601 { say("more than 600 lines") }

/^[ \t]*#[ \t]*include[ \t]*"/ && folder != "" {
  split($0, part, "\"")
  if (folder == "tests" && part[2] !~ "/") next   # a helper beside the test
  target = folder_of(part[2])
  if (target == "") say("include by the path from the root, not \"" part[2] "\"")
  else if (index(" " may[folder] " ", " " target " ") == 0)
    say(folder " may not include " target " (" part[2] ")")
  used[part[2]] = used[part[2]] " " FILENAME
}

/^[ \t]*#[ \t]*include[ \t]*</ {
  split($0, part, "[<>]")
  if (part[2] ~ heavy && FILENAME ~ /\.cuh?$/) say("<" part[2] "> belongs in a .cpp file")
  if (part[2] ~ heavy && FILENAME ~ /\.h$/) brings[FILENAME] = part[2]
}

# libstdc++ 14 no longer brings <algorithm> along with other headers.
/^#include <algorithm>/ { has_algorithms[FILENAME] = 1 }
/std::(clamp|copy_n|count_if|fill_n|find_if|(max|min)_element|next_permutation|partial_sort|sort|stable_sort|transform)[(<]|std::(any|all|none)_of[(]|std::(copy|count|fill|find|lower_bound|max|min|reverse|rotate|shuffle|upper_bound)[(][{]/ &&
  FILENAME ~ /[.](h|cpp|cu|cuh)$/ && !has_algorithms[FILENAME] { say("needs #include <algorithm>") }

# Two types of one name in namespace weft are one to the linker, whichever header a file includes.
/^(class|struct) [A-Za-z0-9_]+.*[{]/ && FILENAME ~ /\.h$/ && FILENAME !~ /^(tests|attention\/kernels)\// {
  if ($2 in defined) say($2 " is defined in " defined[$2] " too")
  defined[$2] = FILENAME
}

END {
  # nvcc chokes on some heavy headers and takes half a minute over others, so a header that includes one is
  # private: for the .cpp files beside it, and for tests.
  for (header in brings) {
    beside = header
    sub("[^/]*$", "", beside)
    users = split(used[header], user, " ")
    for (i = 1; i <= users; i++)
      if (user[i] !~ /^tests\// && user[i] !~ "^" beside "[^/]*[.]cpp$") {
        print user[i] ": includes " header ", which brings in <" brings[header] ">"
        failed = 1
      }
  }
  exit failed
}'

sources '*.h' '*.cpp' '*.cu' '*.cuh' '*.sh' '*.cmake' '*CMakeLists.txt' '*.py' '.ci/run' | xargs -0 -r awk "$check" ||
  { echo "check_imports: see above" >&2; exit 1; }
echo "check_imports: good"
