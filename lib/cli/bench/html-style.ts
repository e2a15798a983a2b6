// The style sheet of a report. Three colours tell lines apart (also for those who see red and green alike); each has a step
// for light and one for dark ground.

export const PAGE_STYLE = `
:root {
  --ground: #f6f6f3; --card: #ffffff; --ink: #1b1b1a; --dim: #62615c; --rule: #e4e3de; --axis: #b5b4ae;
  --a: #2a78d6; --b: #d9601f; --c: #1a9a6c; --on-heat: #ffffff; --notice: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #121211; --card: #1c1c1a; --ink: #f1f0ec; --dim: #a3a29b; --rule: #2e2e2b; --axis: #55544f;
    --a: #4b93ea; --b: #ee7b3c; --c: #2bb583; --on-heat: #0c0c0b; --notice: #ff897d;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; font-weight: 650; }
h1 small { font-size: 17px; font-weight: 400; color: var(--dim); overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 28px 0 8px; }
.conditions { color: var(--dim); margin: 6px 0 20px; }
.notice { color: var(--notice); font-weight: 600; margin: 0 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px; }
.tile, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tile { padding: 12px 16px; display: flex; flex-direction: column; }
.tile span, .tile small { color: var(--dim); font-size: 13px; }
.tile b { font-size: 24px; font-weight: 650; line-height: 1.3; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 14px 6px; }
figcaption { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; justify-content: space-between; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; color: var(--dim); font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle; }
i.a { background: var(--a); } i.b { background: var(--b); } i.c { background: var(--c); }
svg { display: block; width: 100%; height: auto; font: 12.5px system-ui, sans-serif; margin-top: 6px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.minor { stroke-opacity: 0.55; }
.axis { stroke: var(--axis); stroke-width: 1.2; }
.mark { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 3 3; }
.tick, .label, .note { fill: var(--dim); }
.note { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.a { stroke: var(--a); } .line.b { stroke: var(--b); } .line.c { stroke: var(--c); }
.area { stroke: none; fill-opacity: 0.14; }
.area.a { fill: var(--a); } .area.b { fill: var(--b); } .area.c { fill: var(--c); }
.heat.a { fill: var(--a); } .heat.b { fill: var(--b); }
.cell { fill: var(--ink); font-weight: 550; font-size: 12px; }
.cell.strong { fill: var(--on-heat); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--dim); font-weight: 500; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
footer { color: var(--dim); font-size: 13px; margin-top: 28px; }
@media print { body { background: none; } .tile, figure { break-inside: avoid; } }
`
