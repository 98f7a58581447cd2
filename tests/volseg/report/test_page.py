# SPDX-License-Identifier: Apache-2.0
"""The page about many cases: what it says, and how a real browser shows and sorts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volseg.data.case_statistics import CaseStatistics
from volseg.label_maps.case_report import CaseReport
from volseg.report.batch import write_batch_page
from volseg.report.evaluation import ComparedCases, write_evaluation_page
from volseg.report.page import Page, Picture, ReportCase, write_page


class Content(HTMLParser):
    """Text of a page by tag, and sources of its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.tag = ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tag = tag
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tag == "td":
            self.cells[-1] += data.strip()


@pytest.fixture
def weights(tmp_path) -> Path:
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "model.json").write_text('{"epoch": 7}')
    return tmp_path / "model.pt"


def batch(folder: Path) -> CaseStatistics:
    statistics = CaseStatistics(folder, "_lobes.nii.gz")
    for name, volume, warnings in (("a", 900.0, []), ("b<1>", 1000.5, ["cut at the top."]), ("c", 80.0, [])):
        lobes = {"LUL": {"volume_ml": volume, "mean_hu": None}, "LLL": {"volume_ml": volume / 2}}
        entry = {"segmentation": f"{name}_lobes.nii.gz", "lobes": lobes, "pieces": 3, "warnings": warnings}
        statistics.add(f"/in/{name}.nii.gz", entry)
    statistics.note_failure("/in/d.nii.gz", "damaged")
    return statistics


def test_a_batch(tmp_path, weights):
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "b<1>_preview.png")
    write_batch_page(batch(tmp_path), weights)
    page = Content(tmp_path / "report.html")
    assert "3 of 4 cases segmented, 1 of them with warnings." in page.text
    assert page.cells[:5] == ["a", "", "900", "450", "3"]
    assert page.cells[5:10] == ["b<1>", "cut at the top.", "1000", "500.2", "3"]
    assert page.cells[15:17] == ["d.nii.gz", "damaged"]
    (picture,) = page.sources
    assert picture.startswith("data:image/png;base64,")
    assert "&#34;epoch&#34;: 7" in page.text


def test_one_case_needs_no_page(tmp_path, weights):
    statistics = CaseStatistics(tmp_path, "_lobes.nii.gz")
    statistics.add("/in/a.nii.gz", {"segmentation": "a_lobes.nii.gz"})
    write_batch_page(statistics, weights)
    assert not (tmp_path / "report.html").exists()


def report(*dice: float) -> CaseReport:
    result = CaseReport()
    for number, value in enumerate(dice):
        measures = {"dice": value, "distance_mm": 1 - value}
        result.add(f"case{number}", {"left": measures, "right": {**measures, "dice": float("nan")}})
    return result


def test_an_evaluation_shows_the_best_the_median_and_the_worst_case_beside_the_floor(tmp_path, weights):
    drawn = []

    read = []

    def drawer(image: str):
        def draw(path: Path, labels: np.ndarray, title: str) -> None:
            drawn.append((image, labels.sum(), title))
            path.write_bytes(b"png")

        read.append(image)
        return draw

    compared = ComparedCases(drawer)
    for number in range(4):
        labels = np.full((2, 3, 4), number, np.uint8)
        compared.add(f"case{number}", f"/in/{number}", labels, labels * 2)
    write_evaluation_page(tmp_path, report(0.5, 0.9, 0.7, 0.6), compared, weights, floor=report(0.25, 0.25, 0.25, 0.25))
    assert [(image, total) for image, total, _ in drawn] == [
        ("/in/1", 24), ("/in/1", 48), ("/in/3", 72), ("/in/3", 144), ("/in/0", 0), ("/in/0", 0)
    ]  # fmt: skip
    assert read == ["/in/1", "/in/3", "/in/0"]
    page = Content(tmp_path / "report.html")
    assert re.findall(r"<figcaption>(best|median|worst): (case\d), ([\d.]+), found", page.text) == [
        ("best", "case1", "0.900"), ("median", "case3", "0.600"), ("worst", "case0", "0.500")
    ]  # fmt: skip
    assert page.cells[:3] == ["left", "0.675 +- 0.171 (n = 4)", "0.325 +- 0.171 (n = 4)"]
    assert "left, floor" in page.cells
    assert page.text.count('class="floor"') >= 2


def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        pytest.skip("no chromium is installed")
    return found


@pytest.mark.parametrize("width", [420, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_sorts_the_cases_and_needs_nothing_else(tmp_path, width, scheme):
    cases = [
        ReportCase(name, {"volume": value}) for name, value in (("a", 9.0), ("b", None), ("c", 100.0), ("d", 20.0))
    ]
    page = Page("Title", "Lead", cases, {"volume": {"": "volume"}}, pictures=[Picture("x", b"")], facts={"a": "b"})
    write_page(tmp_path / "report.html", page)
    source = (tmp_path / "report.html").read_text()
    probe = """<script>
    const button = [...document.querySelectorAll("#cases th button")].find(b => b.textContent === "volume");
    const order = () => [...document.querySelectorAll("#cases tbody tr")].map(r => r.cells[0].textContent).join("");
    const found = [order()]; button.click(); found.push(order()); button.click(); found.push(order());
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    const colour = getComputedStyle(document.body).backgroundColor;
    document.body.innerHTML = "<pre>" + JSON.stringify([found, wide, colour]) + "</pre>";
    </script></body>"""
    (tmp_path / "probe.html").write_text(source.replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    options += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    out = subprocess.run(
        [chromium(), *options, f"--user-data-dir={tmp_path / 'profile'}", str(tmp_path / "probe.html")],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    orders, overflow, background = json.loads(re.search(r"<pre>(.*)</pre>", out)[1])
    assert orders == ["abcd", "adcb", "cdab"]
    assert overflow <= 0
    assert background == ("rgb(14, 18, 22)" if scheme == "dark" else "rgb(244, 246, 248)")
