#include "training/report/page.h"

#include <algorithm>

#include "autograd/check.h"
#include "training/recipe/diff.h"
#include "training/report/chart.h"
#include "training/report/tables.h"

namespace weft {
namespace {

// One of the horizontal axes.
struct Axis {
  const char *id, *label;
  std::string title;
  double divisor = 1;
  double (*x)(const ComparedRun&, const RunPoint&);
};

std::vector<Axis> axes_of(const Comparison& all) {
  double longest = 0;  // hours
  for (const ComparedRun& run : all.runs)
    if (!run.data.points.empty()) longest = std::max(longest, run.data.points.back().hours);
  const double unit = longest >= 2 ? 1 : longest >= 2.0 / 60 ? 1.0 / 60 : 1.0 / 3600;
  const char* name = unit == 1 ? "hours" : unit > 1.0 / 3600 ? "minutes" : "seconds";
  return {{"tokens", "tokens", "tokens", 1,
           [](const ComparedRun&, const RunPoint& p) { return static_cast<double>(p.tokens); }},
          {"flops", "FLOPs", "FLOPs", 1,
           [](const ComparedRun& run, const RunPoint& p) {
             return run.flops_per_token * static_cast<double>(p.tokens);
           }},
          {"hours", "hours", text(name, " of training"), unit,
           [](const ComparedRun&, const RunPoint& p) { return p.hours; }}};
}

// What is drawn against them.
struct Measure {
  const char *id, *title;
  double RunPoint::*number;
  double ComparedRun::*optional = nullptr;  // drawn where a run has it
};
constexpr Measure kMeasures[] = {
    {"training", "Training loss, nats a token", &RunPoint::loss},
    {"validation", "Validation loss, nats a token", &RunPoint::val_loss},
    {"accuracy", "Validation accuracy", &RunPoint::val_accuracy, &ComparedRun::val_accuracy}};

Chart chart_of(const Comparison& all, const Axis& axis, const Measure& m) {
  const bool validation = m.number != &RunPoint::loss;
  Chart chart{text(axis.id, "-", m.id), text(m.title, ", against ", axis.title), axis.title, axis.divisor, {},
              m.optional != nullptr};
  for (const ComparedRun& run : all.runs) {
    Curve curve;
    curve.name = run.data.name;
    curve.color = static_cast<int>(run.group % 24);
    curve.dotted = !run.apart.empty();
    curve.dots = validation;
    for (const RunPoint& point : run.data.points) {
      const double x = axis.x(run, point), y = point.*m.number;
      if (!std::isfinite(x) || (validation && !std::isfinite(y))) continue;
      curve.x.push_back(x);
      curve.y.push_back(y);
    }
    if (!validation) {
      curve.faint_y = curve.y;
      curve.y = smoothed(curve.y);
    }
    chart.curves.push_back(curve);
  }
  return chart;
}

std::string section(const char* id, const char* title, const std::string& content) {
  return text("<section id=\"", id, "\">\n<h2>", title, "</h2>\n", content, "</section>\n");
}

std::string paragraph(const std::string& words) { return "<p>" + escaped(words) + "</p>\n"; }

std::string legend(const Comparison& all) {
  std::string out = "<ul class=\"legend\">\n";
  for (size_t g = 0; g < all.groups.size(); ++g) {
    const RunGroup& group = all.groups[g];
    // A group's runs may answer different questions; its sample is dotted where none is comparable.
    const bool apart = std::all_of(group.runs.begin(), group.runs.end(),
                                   [&](size_t run) { return !all.runs[run].apart.empty(); });
    out += text("<li><svg viewBox=\"0 0 34 10\" class=\"stroke\" aria-hidden=\"true\"><path class=\"line ",
                stroke_class(static_cast<int>(g % 24), apart), "\" d=\"M1 5H33\"/></svg> ",
                escaped(group.mechanism),
                group.setting.empty() ? "" : " <small>· " + escaped(group.setting) + "</small>",
                group.runs.size() > 1 ? text(" <small>· ", group.runs.size(), " runs</small>") : "",
                apart ? " <small>· not comparable</small>" : "", "</li>\n");
  }
  return out + "</ul>\n";
}

std::string curves(const Comparison& all) {
  const std::vector<Axis> axes = axes_of(all);
  std::string switches, pictures;
  for (const Axis& axis : axes) {
    switches += text("<input type=\"radio\" name=\"axis\" id=\"by-", axis.id, "\"",
                     &axis == axes.data() ? " checked=\"checked\"" : "", "/><label for=\"by-", axis.id, "\">",
                     axis.label, "</label>\n");
    pictures += text("<div class=\"axis ", axis.id, "\">\n");
    for (const Measure& m : kMeasures)
      if (!m.optional || measured(all, m.optional))
        pictures += text("<figure><figcaption>", m.title, "</figcaption>\n", svg(chart_of(all, axis, m)),
                         "</figure>\n");
    pictures += "</div>\n";
  }
  pictures += paragraph(
      "Training: the strong line is a mean over about a fiftieth of the steps, the faint one is every step.");
  return text("<div class=\"curves\">\n<p class=\"by\">Against</p>\n", switches, legend(all), pictures,
              "</div>\n");
}

std::string best(const Comparison& all) {
  if (all.best.empty()) return paragraph("No comparable run has finished yet.");
  return html_table(groups_table(all, all.best)) +
         paragraph(
             "Of each mechanism the setting with the lowest mean validation loss at the end, over the runs "
             "that are done and comparable; ± is the standard deviation of a sample (n - 1) over seeds. "
             "Comparable runs have " +
             (all.common.empty() ? "nothing in common" : all.common) + ".");
}

std::string differences(const Comparison& all) {
  std::string out =
      all.keys.empty() ? paragraph("The recipes do not differ.") : html_table(differences_table(all));
  for (const ComparedRun& run : all.runs) {
    if (!run.data.recipe) continue;
    out += text("<details><summary>whole recipe of ", escaped(run.data.name), "</summary><pre>",
                escaped(resolved_recipe(*run.data.recipe), true), "</pre></details>\n");
    break;
  }
  return out;
}

// One of each mechanism is open: of its best setting, or where none is known the first.
std::string samples(const Comparison& all) {
  std::string out;
  std::vector<std::string> shown;
  for (const size_t g : all.best) shown.push_back(all.runs[all.groups[g].counted[0]].data.folder);
  for (const ComparedRun& run : all.runs) {
    if (run.data.sample.empty()) continue;
    const bool open =
        all.best.empty() ? out.empty() : std::count(shown.begin(), shown.end(), run.data.folder) > 0;
    out += text("<details", open ? " open=\"open\"" : "", "><summary>", escaped(run.data.name), ", ",
                escaped(run.mechanism), ", step ", run.data.sample_step, "</summary><pre class=\"sample\">",
                escaped(run.data.sample, true), "</pre></details>\n");
  }
  return out.empty() ? paragraph("No run has drawn a sample.") : out;
}

constexpr const char* kNotes = R"(<ul>
<li>Training loss: an exponential mean over about a fiftieth of the steps, with the lowest and highest single steps behind
it. Curves are cut above what most of them reach after the first twentieth. In tables it is the mean of the last twentieth
of the steps.</li>
<li>FLOPs: forward and backward of the first batch as weft validate plans them, times tokens.</li>
<li>Hours and tokens a second: time of the steps alone, without evaluation, saving and pauses.</li>
)";

std::string count_of_runs(const Comparison& all) {
  std::string out = text(all.runs.size(), all.runs.size() == 1 ? " run" : " runs");
  for (const RunStatus status :
       {RunStatus::done, RunStatus::running, RunStatus::stopped, RunStatus::failed, RunStatus::broken}) {
    const auto count = std::count_if(all.runs.begin(), all.runs.end(),
                                     [&](const ComparedRun& run) { return run.data.status == status; });
    if (count > 0) out += text(", ", count, " ", name_of(status));
  }
  return out;
}

}  // namespace

const char* const kReportMark = "<!DOCTYPE html>\n<!-- weft report/1 -->\n";

std::string report_page(const Comparison& all, const std::string& title, const std::string& made) {
  // The policy allows styles of the page itself and nothing else: no request leaves it.
  std::string out = text(
      kReportMark,
      "<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n",
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "img-src data:\"/>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n",
      "<meta name=\"color-scheme\" content=\"light dark\"/>\n<link rel=\"icon\" href=\"data:,\"/>\n<title>",
      escaped(title), "</title>\n<style>\n", kReportStyle, "</style>\n</head>\n<body>\n<header>\n<h1>",
      escaped(title), "</h1>\n", paragraph(count_of_runs(all) + "; " + made), "</header>\n<main>\n");
  out += section("best", "Best by mechanism", best(all));
  out += section("curves", "Curves", curves(all));
  std::vector<size_t> groups(all.groups.size());
  for (size_t g = 0; g < groups.size(); ++g) groups[g] = g;
  if (groups.size() > all.best.size())
    out += section("settings", "All settings", html_table(groups_table(all, groups)));
  out += section("runs", "Runs", html_table(runs_table(all)));
  out += section("recipes", "What differs between the recipes", differences(all));
  out += section("samples", "Samples", samples(all));
  out += section("environment", "Environment", html_table(environment_table(all)));
  std::string notes = kNotes;
  for (const std::string& note : all.notes) notes += "<li>" + escaped(note) + "</li>\n";
  out += section("notes", "Notes", notes + "</ul>\n");
  return out + "</main>\n</body>\n</html>\n";
}

}  // namespace weft
