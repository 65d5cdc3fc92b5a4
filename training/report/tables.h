#pragma once
// The tables of a report. The page and the CSV files are written from the same ones.

#include "training/report/compare.h"
#include "training/report/table.h"

namespace weft {

Table runs_table(const Comparison& all);
Table groups_table(const Comparison& all, const std::vector<size_t>& groups);
Table environment_table(const Comparison& all);
Table differences_table(const Comparison& all);

}  // namespace weft
