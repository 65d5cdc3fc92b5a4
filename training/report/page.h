#pragma once
// The report as files: a page of HTML that needs nothing but itself, and its numbers as CSV.

#include <string>

#include "training/report/compare.h"

namespace weft {

// Curves against tokens, FLOPs and hours, the best by mechanism, all settings and runs, what differs between
// the recipes, samples and environments. Without script or outside requests; well-formed XML.
std::string report_page(const Comparison& all, const std::string& title, const std::string& made);

// First line of every report page: a file that begins otherwise is not ours to write over.
extern const char* const kReportMark;

// run, step, tokens, flops, hours and the measures of metrics.jsonl, a row a step.
std::string curves_csv(const Comparison& all);
// A row a run, and one a group of runs that differ in their seed alone.
std::string runs_csv(const Comparison& all);
std::string groups_csv(const Comparison& all);

extern const char* const kReportStyle;  // CSS

}  // namespace weft
