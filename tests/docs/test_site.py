"""The documentation as a site: every link and anchor right, nothing loaded from elsewhere, pages as the source says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from docs.generated import PAGES, text_of
from tests.helpers.browser import CHROMIUM, DARK, measured
from tests.helpers.project import ROOT

REMOTE = re.compile(r'<(?:link|script|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//')
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs`: with --quiet mkdocs would count no warning, and `strict` would mean nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in site.glob("*.html")} == pages | {"404"}
    for page in site.glob("*.html"):
        assert not REMOTE.search(page.read_text(encoding="utf-8")), page.name
    assert not list(site.rglob("*.py")) and not (site / "theme").exists()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_phone_in_the_dark_shows_a_page_without_a_fault(site: Path, tmp_path: Path) -> None:
    """The page with the widest tables fits; `theme/main.html` keeps the switch of light and dark from failing."""
    script = """return {wide: page.documentElement.scrollWidth, theme: page.documentElement.dataset.bsTheme,
        font: view.getComputedStyle(page.querySelector("td code")).fontFamily};"""
    found, console = measured(site / "parameters.html", tmp_path, script, width=400, scheme=DARK)
    assert found["wide"] <= 400 and found["theme"] == "dark" and "mono" in found["font"].lower()
    assert [line for line in console if "Uncaught" in line or "error" in line.lower()] == []


def test_a_dead_link_and_a_dead_anchor_stop_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs/theme", tmp_path / "docs/theme")
    for page in (ROOT / "docs").glob("*.md"):
        (tmp_path / "docs" / page.name).write_text("# Page\n\n## Part\n", encoding="utf-8")
    (tmp_path / "docs/faq.md").write_text("[a](gone.md) [b](index.md#gone) [c](index.md#part)\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "gone.md" in done.stderr and "#gone" in done.stderr and "#part" not in done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_what_is_made_from_the_source_is_up_to_date(name: str) -> None:
    there = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert there == text_of(name), f"docs/{name} is not what the source says: python -m docs.generated"


def test_every_key_of_params_is_explained() -> None:
    rows = [line for line in text_of("parameters.md").splitlines() if line.startswith("| `")]
    assert len(rows) > 150 and [row for row in rows if row.split(" | ")[1].strip() == ""] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_outside_the_site(name: str) -> None:
    """The site's own are the generator's to check."""
    text = (ROOT / name).read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert len(links) >= 1
    for link in links:
        place, _, anchor = link.partition("#")
        target = ROOT / place if place else ROOT / name
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slugify(title, "-") for title in titles}, link


def test_a_claim_of_one_seed_has_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs/results").mkdir(parents=True)
    shutil.copy(ROOT / "docs/index.md", tmp_path / "docs")
    shutil.copy(ROOT / "docs/results/ablations.json", tmp_path / "docs/results")
    claim = json.loads((ROOT / "docs/results/claim.json").read_text())
    for metrics in claim["paired"].values():
        for entry in metrics.values():
            entry |= {"low": None, "high": None}
    claim["paired"]["frozen-base"]["clip"]["mean"] = 1.25
    (tmp_path / "docs/results/claim.json").write_text(json.dumps(claim | {"seeds": [0]}))
    monkeypatch.setattr("docs.generated.ROOT", tmp_path)
    text = text_of("index.md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert any("1 seed, " in line for line in table) and any("| +1.25 |" in line for line in table)
    assert not any("[" in line for line in table[2:])
