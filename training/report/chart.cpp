#include "training/report/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "autograd/check.h"
#include "training/report/table.h"

namespace weft {
namespace {

constexpr double kWidth = 640, kHeight = 400;
constexpr double kLeft = 72, kRight = 16, kTop = 14, kBottom = 58;
constexpr size_t kDrawn = 240;  // of a curve's points: more than the eye tells apart

std::string rounded(double x, int digits = 1) {
  char out[32];
  std::snprintf(out, sizeof out, "%.*f", digits, x);
  return out;
}

// Marks 1, 2 or 5 times a power of ten apart, about `count` of them.
double tick_step(double range, int count) {
  const double rough = range / count, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (rough <= factor * power) return factor * power;
  return 10 * power;
}

struct Frame {
  double x0 = 0, x1 = 0, y0 = INFINITY, y1 = -INFINITY;

  bool empty() const { return !(y1 >= y0) || !(x1 > x0); }
  double px(double x) const { return kLeft + (x - x0) / (x1 - x0) * (kWidth - kLeft - kRight); }
  double py(double y) const { return kHeight - kBottom - (y - y0) / (y1 - y0) * (kHeight - kTop - kBottom); }
};

Frame frame_of(const Chart& chart) {
  Frame frame;
  for (const Curve& curve : chart.curves)
    if (!curve.x.empty()) frame.x1 = std::max(frame.x1, curve.x.back());
  for (const double from :
       {chart.whole ? 0 : frame.x1 / 20, 0.0}) {  // all of it where nothing is after the first twentieth
    std::vector<double> tops;                     // one a curve
    for (const Curve& curve : chart.curves) {
      double top = -INFINITY;
      for (size_t i = 0; i < curve.x.size(); ++i) {
        if (!std::isfinite(curve.y[i]) || curve.x[i] < from) continue;
        frame.y0 = std::min(frame.y0, curve.y[i]);
        top = std::max(top, curve.y[i]);
      }
      if (std::isfinite(top)) tops.push_back(top);
    }
    if (tops.empty()) continue;
    std::sort(tops.begin(), tops.end());
    frame.y1 = std::min(tops.back(), frame.y0 + 3 * (tops[(tops.size() - 1) / 2] - frame.y0));
    if (chart.whole || !(frame.y1 > frame.y0)) frame.y1 = tops.back();
    break;
  }
  frame.x1 *= 1.01;  // room for the last dot
  // Around a single height, marks that are apart by what can be read.
  const double margin = frame.y1 > frame.y0
                            ? std::max(0.04 * (frame.y1 - frame.y0), 1e-6 + 1e-3 * std::abs(frame.y0))
                            : 0.01 + 0.05 * std::abs(frame.y0);
  frame.y0 -= margin;
  frame.y1 += margin;
  return frame;
}

std::string axes(const Chart& chart, const Frame& frame) {
  std::string out;
  const auto label = [&](const char* kind, double x, double y, const std::string& words) {
    out += text("<text class=\"", kind, "\" x=\"", rounded(x), "\" y=\"", rounded(y), "\">", escaped(words),
                "</text>\n");
  };
  const double bottom = kHeight - kBottom;
  const double step_y = tick_step(frame.y1 - frame.y0, 5);
  const int digits = std::max(0, static_cast<int>(-std::floor(std::log10(step_y) + 1e-9)));
  for (auto i = static_cast<int64_t>(std::ceil(frame.y0 / step_y));
       static_cast<double>(i) * step_y <= frame.y1; ++i) {
    const double y = static_cast<double>(i) * step_y;
    out +=
        text("<path class=\"grid\" d=\"M", kLeft, " ", rounded(frame.py(y)), "H", kWidth - kRight, "\"/>\n");
    label("left", kLeft - 8, frame.py(y) + 5, rounded(y, digits));
  }
  const double step_x = tick_step((frame.x1 - frame.x0) / chart.x_divisor, 5) * chart.x_divisor;
  for (int i = 0; i * step_x <= frame.x1 * (1 + 1e-9); ++i) {
    const double x = i * step_x;
    out += text("<path class=\"grid\" d=\"M", rounded(frame.px(x)), " ", kTop, "V", bottom + 5, "\"/>\n");
    label("below", frame.px(x), bottom + 24, with_prefix(x / chart.x_divisor));
  }
  out += text("<path class=\"edge\" d=\"M", kLeft, " ", kTop, "V", bottom, "H", kWidth - kRight, "\"/>\n");
  label("below", (kLeft + kWidth - kRight) / 2, kHeight - 8, chart.x_title);
  return out;
}

// Of equally long stretches of x: the last point of each, or its lowest and highest.
std::string path_of(const Curve& curve, const std::vector<double>& y, const Frame& frame, bool extremes) {
  std::string path;
  bool pen_up = true;
  const auto go = [&](size_t i) {
    path += (pen_up ? "M" : "L") + rounded(frame.px(curve.x[i])) + " " + rounded(frame.py(y[i]));
    pen_up = false;
  };
  const double stretch = (frame.x1 - frame.x0) / kDrawn;
  for (size_t begin = 0, end = 0; begin < y.size(); begin = end) {
    const double limit = (std::floor(curve.x[begin] / stretch) + 1) * stretch;
    size_t low = begin, high = begin, last = begin;
    bool gap = false;
    for (; end < y.size() && (end == begin || curve.x[end] < limit); ++end) {
      gap |= !std::isfinite(y[end]);
      if (!std::isfinite(y[end])) continue;
      last = end;
      if (!(y[low] <= y[end])) low = end;
      if (!(y[high] >= y[end])) high = end;
    }
    pen_up |= gap;
    if (!std::isfinite(y[last])) continue;
    if (extremes && low != high) {
      go(std::min(low, high));
      go(std::max(low, high));
    } else {
      go(last);
    }
  }
  return path;
}

std::string drawn(const Curve& curve, const Frame& frame) {
  const std::string kind = stroke_class(curve.color, curve.dotted);
  std::string out;
  if (!curve.faint_y.empty())
    out +=
        text("<path class=\"faint ", kind, "\" d=\"", path_of(curve, curve.faint_y, frame, true), "\"/>\n");
  const std::string line = path_of(curve, curve.y, frame, false);
  if (line.empty()) return "";
  out += text("<path class=\"line ", kind, "\" d=\"", line, "\"><title>", escaped(curve.name),
              "</title></path>\n");
  if (curve.dots && curve.x.size() <= kDrawn / 4)
    for (size_t i = 0; i < curve.x.size(); ++i)
      if (std::isfinite(curve.y[i]))
        out += text("<circle class=\"dot ", kind, "\" r=\"3\" cx=\"", rounded(frame.px(curve.x[i])),
                    "\" cy=\"", rounded(frame.py(curve.y[i])), "\"/>\n");
  return out;
}

}  // namespace

std::string svg(const Chart& chart) {
  const Frame frame = frame_of(chart);
  if (frame.empty()) return "<p class=\"nothing\">nothing to draw yet</p>\n";
  const std::string clip = "clip-" + chart.id;
  std::string out =
      text("<svg viewBox=\"0 0 ", kWidth, " ", kHeight, "\" role=\"img\" aria-label=\"", escaped(chart.title),
           "\" xmlns=\"http://www.w3.org/2000/svg\">\n<clipPath id=\"", clip, "\"><rect x=\"", kLeft,
           "\" y=\"", kTop, "\" width=\"", kWidth - kLeft - kRight, "\" height=\"", kHeight - kTop - kBottom,
           "\"/></clipPath>\n");
  out += axes(chart, frame) + "<g clip-path=\"url(#" + clip + ")\">\n";
  for (const Curve& curve : chart.curves) out += drawn(curve, frame);
  return out + "</g></svg>\n";
}

std::string stroke_class(int color, bool dotted) {
  constexpr const char* dashes[] = {"", " dashed", " dash-dotted"};
  return text("c", color % 8, dotted ? " dotted" : dashes[color / 8 % 3]);
}

std::vector<double> smoothed(const std::vector<double>& values) {
  const double span = std::max(1.0, static_cast<double>(values.size()) / 50), fading = 1 - 1 / span;
  std::vector<double> out;
  double sum = 0, weight = 0;
  for (const double x : values) {
    if (!std::isfinite(x)) {
      out.push_back(NAN);
      continue;
    }
    sum = fading * sum + x;
    weight = fading * weight + 1;
    out.push_back(sum / weight);
  }
  return out;
}

}  // namespace weft
