#pragma once
// Curves as one SVG picture, for a page without script.

#include <string>
#include <vector>

namespace weft {

struct Curve {
  std::string name;  // shown when the pointer is on it
  int color = 0;     // 0 to 23: eight colours, then the same dashed, then dash-dotted
  bool dotted = false;
  std::vector<double> x, y;     // x ascending; y may hold NaN, which leaves a gap
  std::vector<double> faint_y;  // what y is a smooth form of, drawn behind it; may be empty
  bool dots = false;            // marks its points
};

// Classes of the style for a curve of this colour.
std::string stroke_class(int color, bool dotted);

struct Chart {
  std::string id;              // of its own on the page
  std::string title, x_title;  // x_title with the unit
  double x_divisor = 1;        // of the values before they are shown: 60 of seconds for minutes
  std::vector<Curve> curves;
  bool whole = false;  // y is not cut
};

// Without any point it says so. Unless whole, y is cut above what most curves reach after the first
// twentieth: the first steps, or a run that diverged, would press all else together.
std::string svg(const Chart& chart);

// Exponential mean over about 1/50 of the values, not biased to the first: up to 50 stay as they are. A
// longer span would draw a short run that still learns far above what it reached.
std::vector<double> smoothed(const std::vector<double>& values);

}  // namespace weft
