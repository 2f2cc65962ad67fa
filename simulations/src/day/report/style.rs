//! How the page looks.

/// Light by default, dark where the reader's machine is, light on paper. The colours of the runs are those
/// of Okabe and Ito ("Color Universal Design", 2008), lightened for the dark.
pub(super) const CSS: &str = "
:root {
  --paper: #ffffff; --ink: #1b1f24; --muted: #5b6470; --rule: #d5dae0; --grid: #e9ecf0; --shade: #8a93a0;
  --mesh-harmed: #0072b2; --mesh-calm: #56b4e9; --central-harmed: #d55e00; --central-calm: #e69f00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e7eaee; --muted: #9aa4b0; --rule: #3a4048; --grid: #262b31; --shade: #aab4c0;
    --mesh-harmed: #3aa0e6; --mesh-calm: #8fd0f5; --central-harmed: #f2833d; --central-calm: #f3c04f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 0 0 6px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 18px 0 4px; }
section { margin-top: 34px; }
p { margin: 4px 0 10px; max-width: 76ch; }
.lead { font-size: 17px; }
.note { color: var(--muted); font-size: 14px; }
.findings { margin: 12px 0 16px; padding-left: 20px; max-width: 86ch; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 24px; font-size: 14px; }
.legend svg { width: 34px; height: 12px; vertical-align: middle; margin-right: 6px; }
.scroll { overflow-x: auto; }
figure { margin: 10px 0 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 720px; height: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
table.runs { table-layout: fixed; min-width: 760px; }
table.runs thead th:first-child { width: 38%; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--grid); }
thead th { border-bottom: 1px solid var(--rule); font-weight: 600; }
tbody th { font-weight: 400; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.group th { font-weight: 600; padding-top: 12px; border-bottom: 1px solid var(--rule); }
th .swatch { display: block; height: 4px; margin: 0 0 4px auto; width: 44px; }
code { font: 13px/1.4 ui-monospace, monospace; background: var(--grid); padding: 2px 6px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0; }
dt { color: var(--muted); }
dd { margin: 0; }
.mesh.harmed { --run: var(--mesh-harmed); }
.mesh.calm { --run: var(--mesh-calm); }
.central.harmed { --run: var(--central-harmed); }
.central.calm { --run: var(--central-calm); }
.swatch { background: var(--run); }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.small { font-size: 11px; }
svg text.muted { fill: var(--muted); }
svg text.title { font-weight: 600; font-size: 13px; }
svg text.middle { text-anchor: middle; }
svg text.end { text-anchor: end; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 3; }
svg .target { stroke: var(--ink); stroke-width: 2; }
svg .shade { fill: var(--shade); opacity: .17; }
svg .bar { fill: var(--shade); opacity: .45; }
svg .line { fill: none; stroke: var(--run); stroke-width: 2.2; stroke-linejoin: round; }
svg .line.calm { stroke-width: 1.7; stroke-dasharray: 5 3; }
svg .thin { stroke: var(--run); stroke-width: 3; }
svg .dot { fill: var(--run); stroke: var(--paper); stroke-width: 1; }
svg .dot.calm { fill: var(--paper); stroke: var(--run); stroke-width: 2; }
svg .step { fill: none; stroke: var(--ink); stroke-width: 1.8; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
";
