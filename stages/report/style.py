# ruff: noqa: E501 (CSS, not Python)
"""The page's style sheet: light, readable on paper, on a desk and on a phone."""

STYLE = """
:root { --ink: #1c2430; --muted: #5d6776; --line: #e4e8ee; --paper: #fff; --wash: #f6f7f9;
  --base: #7c8594; --frozen: #2f6fc4; --coevolved: #e07b1a; --good: #2c7a4b; --bad: #b3412f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 72px; }
header h1 { font-size: clamp(1.7rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .35em; }
header p { font-size: 1.08rem; color: var(--muted); max-width: 46em; margin: 0 0 .9em; }
h2 { font-size: 1.32rem; letter-spacing: -.01em; margin: 0 0 .25em; }
h3 { font-size: 1rem; margin: 1.6em 0 .3em; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 26px 28px; margin-top: 22px; }
section > p { color: var(--muted); max-width: 48em; margin: .1em 0 1.1em; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; padding: 0; list-style: none; font-size: .88rem; }
.facts li { background: var(--paper); border: 1px solid var(--line); border-radius: 99px; padding: 3px 12px; }
.facts b { font-weight: 600; }
.key { display: inline-block; width: .72em; height: .72em; border-radius: 50%; margin-right: .4em; background: var(--c, var(--muted)); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: middle; }
thead th { font-weight: 600; color: var(--muted); font-size: .82rem; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; }
th:first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
tr.from > * { border-top: 2px solid var(--line); }
small { color: var(--muted); font-weight: 400; }
tbody th small { display: block; line-height: 1.3; }
.seeds { font-size: .84rem; color: var(--muted); }
.seeds span + span { margin-left: .75em; }
.better { color: var(--good); font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.open { color: var(--muted); }
.charts + .scroll { margin-top: 26px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 22px 26px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 26px; align-items: start; }
svg { display: block; width: 100%; height: auto; }
.legend { font-size: .88rem; color: var(--muted); margin: 0 0 1em; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
figure { margin: 0; }
figcaption { color: var(--muted); font-size: .86rem; margin-top: .5em; }
details { margin-top: .8em; }
summary { cursor: pointer; font-weight: 600; margin-bottom: .5em; }
.images { width: auto; }
.images th, .images td { padding: 4px; border: 0; text-align: center; position: relative; }
.images thead th { white-space: normal; vertical-align: bottom; line-height: 1.2; max-width: 112px; overflow-wrap: anywhere; }
.images th:first-child { text-align: left; padding-right: 14px; font-weight: 400; white-space: normal; min-width: 8.5em; max-width: 15em; }
.images img { display: block; width: 84px; height: 84px; border-radius: 6px; object-fit: cover; background: var(--line); }
.pixels { image-rendering: pixelated; }
.images .large { width: 112px; height: 112px; }
.images i { position: absolute; right: 7px; bottom: 7px; font: 600 11px/16px system-ui, sans-serif; width: 16px; height: 16px;
  border-radius: 50%; color: #fff; text-align: center; }
i.yes { background: var(--good); } i.no { background: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 18px; margin: 0; font-size: .94rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--muted); }
footer { color: var(--muted); font-size: .86rem; margin-top: 26px; }
@media (max-width: 640px) {
  main { padding: 22px 12px 48px; } section { padding: 18px 14px; border-radius: 10px; }
  th, td { padding: 6px 7px; } .images img, .images .large { width: 60px; height: 60px; }
  .images th, .images td { padding: 2px; } .images th:first-child { min-width: 6em; max-width: 6.5em; font-size: .82rem; padding-right: 6px; }
  dl { grid-template-columns: 1fr; } dt { margin-top: .4em; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
