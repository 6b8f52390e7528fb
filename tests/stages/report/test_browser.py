"""What a person sees of the page in headless Chromium: at four widths, light and dark, and what a click does."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.report.writing import write_report
from stages.runtime.artifacts import manifest_sha256
from stages.runtime.stage import artifact_path
from tests.helpers.browser import CHROMIUM, DARK, LIGHT, measured
from tests.helpers.fake_artifacts import write_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`"),
]

OUTSIDE = """
for (const part of page.querySelectorAll("details")) part.open = true;
const outside = [];
for (const element of page.body.querySelectorAll("*")) {
  const box = element.getBoundingClientRect();
  if (box.width && (box.left < -0.5 || box.right > view.innerWidth + 0.5)) outside.push(element.outerHTML.slice(0, 80));
}
const colours = view.getComputedStyle(page.body);
const text = view.getComputedStyle(page.querySelector("svg text"));
return {width: page.documentElement.scrollWidth, inner: view.innerWidth, outside,
  ground: colours.backgroundColor, ink: colours.color, drawn: text.fill};
"""
CLICKS = """
const visible = query => [...page.querySelectorAll(query)].filter(element => element.checkVisibility());
const folded = visible("table").length;
for (const part of page.querySelectorAll("details")) part.open = true;
const [chooser, seeds] = page.querySelectorAll("select");
const panels = () => visible("#differences > .panel").map(panel => panel.querySelector("h3").textContent);
const before = panels();
chooser.selectedIndex = 2;
chooser.dispatchEvent(new view.Event("change"));
const slider = page.querySelector("input[type=range]");
const rounds = value => {
  slider.value = value;
  slider.dispatchEvent(new view.Event("input"));
  return [...new Set(visible("#images [data-round]").map(figure => figure.dataset.round))];
};
const [last, begun] = [rounds(2), rounds(0)];
const repeated = visible("#images img[data-of]").every(image => image.complete && image.naturalWidth === 48);
const said = page.querySelector("output").textContent;
seeds.selectedIndex = 1;
seeds.dispatchEvent(new view.Event("change"));
const shown = visible("#seeds h3").map(head => head.textContent);
const dialog = page.querySelector("dialog");
page.querySelector(".claim .zoom").click();
const zoomed = [dialog.open, dialog.querySelector("img").clientWidth, dialog.querySelector("p").textContent];
dialog.click();
return {folded, before, after: panels(), last, begun, repeated, said, shown, zoomed, closed: !dialog.open};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    params = write_project(folder, [0, 1, 2], 2, sft=True)
    usage = folder / ".rank-e" / "usage"
    usage.mkdir(parents=True)
    made = {"artifact": manifest_sha256(folder / artifact_path("policy", "frozen", 0, 1)), "phases": {"wait": 0.0}}
    (usage / "policy-frozen-s0-r1.json").write_text(json.dumps({"seconds": 123456.7, "peak_gpu_mb": 1.0, **made}))
    return write_report(params, folder)


@pytest.mark.parametrize("width", [400, 700, 1000, 1280])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_nothing_lies_outside_the_frame_and_the_console_is_silent(
    page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    found, console = measured(page, tmp_path, OUTSIDE, width=width, scheme=scheme)
    assert found["inner"] == width and found["width"] <= width and found["outside"] == [] and console == []
    ground, ink, drawn = (brightness(found[name]) for name in ("ground", "ink", "drawn"))
    assert ground > 200 > 60 > max(ink, drawn) if scheme == LIGHT else ground < 40 < 200 < min(ink, drawn)


def test_choosers_slider_and_zoom_do_what_they_say(page: Path, tmp_path: Path) -> None:
    found, console = measured(page, tmp_path, CLICKS, width=1280)
    assert console == [] and found["folded"] == 1
    assert (found["before"], found["after"]) == (["coevolved − frozen"], ["frozen − base"])
    assert (found["last"], found["begun"], found["said"]) == (["2"], ["0"], "0")
    assert found["repeated"] and found["shown"] == ["seed 1"]
    assert found["zoomed"][0] and found["zoomed"][1] > 400 and found["zoomed"][2] == "real: a red circle"
    assert found["closed"]


def test_an_error_of_a_script_would_be_heard(page: Path, tmp_path: Path) -> None:
    """The Content-Security-Policy lets no other script in, and the console says so."""
    other = tmp_path / "other.html"
    other.write_text(page.read_text(encoding="utf-8").replace("</main>", "</main><script>1</script>"), encoding="utf-8")
    _, console = measured(other, tmp_path, "return 1;", width=400)
    assert len(console) == 1 and "Content Security Policy" in console[0]


def brightness(colour: str) -> float:
    """The mean of rgb(R, G, B)."""
    values: list[Any] = colour.removeprefix("rgb(").removesuffix(")").split(",")
    return sum(map(float, values)) / 3
