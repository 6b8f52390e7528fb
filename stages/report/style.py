# ruff: noqa: E501 (CSS, not Python)
"""The page's style sheet: light or dark as the reader's system is, on paper, on a desk and on a phone."""

from stages.report.figures import DARK

DRAWINGS = "".join(
    f'  svg [fill="{light}"] {{ fill: {dark}; }} svg [stroke="{light}"] {{ stroke: {dark}; }}\n'
    for light, dark in DARK.items()
)
"""Rules that repaint the drawings, which name their colours themselves."""

LIGHT = """
:root { color-scheme: light dark; --ink: #1c2430; --muted: #5d6776; --line: #e4e8ee; --paper: #fff; --wash: #f6f7f9;
  --good: #2c7a4b; --bad: #b3412f; --accent: #2f6fc4; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1240px; margin: 0 auto; padding: 22px 16px 60px; }
h1 { font-size: 1.6rem; line-height: 1.2; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.15rem; letter-spacing: -.01em; margin: 0; display: inline; }
h3 { font-size: 1rem; margin: 1.4em 0 .4em; }
p { margin: .3em 0 .9em; max-width: 52em; }
small { color: var(--muted); font-weight: 400; }
code { font-size: .92em; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px; margin-bottom: 10px; }
.facts { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0; padding: 0; list-style: none; font-size: .86rem; color: var(--muted); }
.facts b { font-weight: 600; color: var(--ink); }
.claim, details { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 14px 20px; margin-top: 12px; }
.claim > p { margin: 0 0 .5em; max-width: none; }
.claim > .halves { display: grid; grid-template-columns: minmax(250px, 1fr) minmax(0, max-content); gap: 22px; align-items: start; }
.claim .legend { margin: 0; }
.claim table { font-size: .86rem; } .claim .data th, .claim .data td { padding: 3px 6px; }
.claim .data small { font-size: .76rem; } .claim thead th > div { max-width: 8.6em; margin-left: auto; } .claim thead th:first-child > div { margin-left: 0; }
.claim .prompt .images figure { width: 120px; }
.claim tbody th, .data th > span, .legend span { white-space: nowrap; }
.claim .prompt { border-top: 1px solid var(--line); margin-top: 10px; padding-top: 8px; }
summary { cursor: pointer; } summary small { margin-left: .8em; }
details[open] > summary { margin-bottom: .6em; }
details > p { color: var(--muted); }
.key { display: inline-block; width: .72em; height: .72em; border-radius: 50%; margin-right: .4em; background: var(--c); }
.data { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
.data th, .data td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); vertical-align: middle; }
.data thead th { font-weight: 600; color: var(--muted); font-size: .82rem; border-bottom: 2px solid var(--line); vertical-align: bottom; }
.data th:first-child { text-align: left; }
.data tbody th { font-weight: 600; }
.data tbody tr:last-child > * { border-bottom: 0; }
.data small { display: block; line-height: 1.3; }
.data td, .data thead th { overflow-wrap: break-word; }
.seeds { font-size: .84rem; color: var(--muted); } .seeds span { white-space: nowrap; margin-left: .6em; }
.better { color: var(--good); } .worse { color: var(--bad); } .open { color: var(--muted); font-weight: 400; }
label { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; margin: 0 0 .8em; font-size: .92rem; color: var(--muted); }
select { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 5px 8px; max-width: 100%; }
input[type=range] { width: 220px; max-width: 60%; accent-color: var(--accent); } output { font-weight: 600; color: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 20px 26px; margin-bottom: 18px; }
.data + .charts { margin-top: 20px; }
svg { display: block; width: 100%; height: auto; }
.legend { font-size: .86rem; color: var(--muted); } .legend span { margin-right: 1.1em; white-space: nowrap; }
figure { margin: 0; }
.narrow { max-width: 640px; }
.prompt > p { margin: 0 0 4px; font-size: .9rem; color: var(--ink); } .prompt + .prompt { margin-top: 14px; }
.images { display: flex; flex-wrap: wrap; gap: 8px 10px; }
.images figure { width: 104px; }
.images figcaption { font-size: .76rem; line-height: 1.25; color: var(--muted); margin-top: 3px; }
.zoom { display: block; padding: 0; border: 0; background: none; cursor: zoom-in; width: 100%; }
.zoom img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px; background: var(--line); }
.pixels { image-rendering: pixelated; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
dialog { border: 0; border-radius: 12px; padding: 14px; background: var(--paper); color: var(--ink); cursor: zoom-out; max-width: calc(100vw - 24px); }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog img { display: block; width: min(80vw, 72vh, 576px); height: auto; border-radius: 6px; } dialog p { margin: .6em 0 0; max-width: min(80vw, 72vh, 576px); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 18px; margin: 0; font-size: .92rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--muted); }
footer { color: var(--muted); font-size: .84rem; margin-top: 20px; }
@media (max-width: 1100px) { .claim > .halves { grid-template-columns: minmax(0, 1fr); gap: 12px; } }
@media (max-width: 860px) {
  main { padding: 14px 10px 40px; } .claim, details { padding: 12px; }
  .claim { display: flex; flex-direction: column; } .claim > .halves { display: contents; }
  .claim > .prompt { order: 1; } .claim > .halves > div { order: 2; margin-top: 12px; }
  .data, .data tbody { display: block; } .data thead { display: none; }
  .data tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 4px 10px; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .data tbody tr:last-child { border-bottom: 0; }
  .data th, .data td, .claim .data th, .claim .data td { display: block; border: 0; padding: 0; text-align: left; min-width: 0; }
  .data tbody th { grid-column: 1 / -1; } .data tbody th small { display: inline; margin-left: .6em; }
  .data td::before { content: attr(data-label); display: block; font-size: .74rem; color: var(--muted); }
  .data td:has(.seeds) { grid-column: 1 / -1; order: 1; } .seeds span { margin: 0 .8em 0 0; }
  .images figure, .claim .prompt .images figure { width: calc((100% - 30px) / 4); min-width: 70px; }
  dl { grid-template-columns: minmax(0, 1fr); } dt { margin-top: .4em; }
}
@media print { details { break-inside: avoid; } }
"""
DARKER = """
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ebf1; --muted: #9ca8b8; --line: #2c3542; --paper: #181d25; --wash: #10141a;
    --good: #6cc492; --bad: #f08a76; --accent: #6ba3ee; }
  .key { background: var(--d); }
"""
STYLE = f"{LIGHT}{DARKER}{DRAWINGS}}}\n"

SHOW_ALL = ".panel[hidden] { display: block !important; } .chooser { display: none; }"
"""Where no script runs: every panel, and nothing to choose by."""
