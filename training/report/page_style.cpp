#include "training/report/page.h"

namespace weft {

// In XML the style is text like any other, so it does without < and &.
const char* const kReportStyle = R"css(
:root {
  --paper: #ffffff; --ink: #1c1e21; --soft: #5d636b; --rule: #d9dce0; --band: #f5f6f8;
  --c0: #1460aa; --c1: #c4500b; --c2: #0b7a55; --c3: #9a3a8a; --c4: #8a6a00; --c5: #1f8fb8; --c6: #b3263c; --c7: #666b73;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e4e6e9; --soft: #9aa1aa; --rule: #363b42; --band: #1d2024;
    --c0: #6fb1f2; --c1: #f59a5b; --c2: #4fcf9f; --c3: #dd8fd0; --c4: #d9b84a; --c5: #66cbea; --c6: #f2798a; --c7: #a9b0b9;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 20px 48px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 32px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); }
p, li { max-width: 78ch; }
header p, section p, #notes li { color: var(--soft); margin: 6px 0; }
ul { padding-left: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
td { overflow-wrap: break-word; max-width: 60ch; }
#best td:nth-child(2), #settings td:nth-child(2) { min-width: 17ch; }
#runs td:first-child, #settings td:first-child, #best td:first-child { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
tbody tr:hover { background: var(--band); }

.curves .by { display: inline; color: var(--soft); margin-right: 6px; }
.curves input { position: absolute; opacity: 0; }
.curves label { display: inline-block; padding: 3px 14px; margin-right: 4px; border: 1px solid var(--rule); border-radius: 14px;
  cursor: pointer; }
.curves input:checked + label { background: var(--ink); color: var(--paper); border-color: var(--ink); }
.curves input:focus-visible + label { outline: 2px solid var(--c0); outline-offset: 2px; }
.axis { display: none; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px 28px; margin-top: 14px; }
#by-tokens:checked ~ .tokens, #by-flops:checked ~ .flops, #by-hours:checked ~ .hours { display: grid; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: 14px; }
figure svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 15px; font-variant-numeric: tabular-nums; }
svg text.left { text-anchor: end; }
svg text.below { text-anchor: middle; }
.grid { stroke: var(--rule); fill: none; stroke-width: 1; }
.edge { stroke: var(--soft); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line:hover { stroke-width: 4; }
.faint { fill: none; stroke-width: 1; opacity: 0.22; }
.dashed { stroke-dasharray: 8 4; }
.dash-dotted { stroke-dasharray: 10 4 2 4; }
.dotted { stroke-dasharray: 2 4; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.dot { fill: var(--paper); stroke-width: 2; stroke-dasharray: none; }
.legend { list-style: none; padding: 0; margin: 12px 0 0; display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 14px; }
.legend small { color: var(--soft); }
.stroke { width: 34px; height: 10px; }

details { margin: 8px 0; }
summary { cursor: pointer; font-size: 14px; }
pre { margin: 6px 0; padding: 10px 14px; background: var(--band); border-radius: 6px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre.sample { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; max-width: 90ch; }
@media (max-width: 600px) {
  body { padding: 16px 14px 32px; }
  svg text { font-size: 22px; }
  .line { stroke-width: 3; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .curves input, .curves label, .curves .by { display: none; }
  .axis { display: grid !important; grid-template-columns: 1fr 1fr; break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  td { max-width: none; }
  th, td { padding: 2px 8px 2px 0; }
  tr, li, .legend { break-inside: avoid; }
  h2 { break-after: avoid; margin-top: 18px; }
  pre { white-space: pre-wrap; background: none; border: 1px solid var(--rule); }
}
@page { margin: 12mm; size: landscape; }
)css";

}  // namespace weft
