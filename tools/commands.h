#pragma once
// The commands, each in its own file of tools/commands. main.cpp lists them.

#include "tools/command.h"

namespace weft {

int run_apply(const Words& words);
int run_bench(const Words& words);
int run_corpus(const Words& words);
int run_cp(const Words& words);
int run_diff(const Words& words);
int run_eval(const Words& words);
int run_generate(const Words& words);
int run_help(const Words& words);
int run_launch(const Words& words);
int run_logits(const Words& words);
int run_ls(const Words& words);
int run_report(const Words& words);
int run_schema(const Words& words);
int run_sweep(const Words& words);
int run_tokenize(const Words& words);
int run_train(const Words& words);
int run_validate(const Words& words);

}  // namespace weft
