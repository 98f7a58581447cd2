# SPDX-License-Identifier: Apache-2.0
"""The page of a registry: what it says, and how a real browser shows it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.tools.registry_fixtures import (
    QuietHandler,
    served,
    write_zip,
)
from tools import REPOSITORY
from tools.publish import publish
from tools.registry_store import registry_page
from volseg.registry import verify
from volseg.registry.index import Entry
from volseg.registry.release import Release


def entry(name: str = "lung_lobes", version: str = "0.1.0", **facts: object) -> Entry:
    release = Release(name, version)
    required = {
        "source": release.zip_name,
        "checksum": "0" * 40,
        "sha256": "a" * 64,
        "size": 1234567,
        "unpacked_size": 3,
        "date": "2026-01-31",
        "license": "Apache-2.0",
    }
    return Entry(release, **(required | facts))


class Text(HTMLParser):
    """What a page shows, and the attributes of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements = "", []
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        self.text += " " * (tag in ("dd", "dt", "li", "p", "pre", "h2", "h3"))

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attributes[attribute] for name, attributes in self.elements if name == tag and attribute in attributes]


def test_a_card_has_what_a_user_looks_for():
    facts = {
        "title": "The lungs",
        "task": "Segmentation of lobes",
        "metrics": {"mean_dice": 0.905},
        "picture": "lung_lobes_v0.1.0.png",
        "signature": "lung_lobes_v0.1.0.zip.sig",
    }
    page = Text(registry_page([entry(**facts)]))
    assert page.all("img", "src") == ["lung_lobes_v0.1.0.png"]
    assert page.all("img", "alt") == ["A result of The lungs"]
    assert {"lung_lobes_v0.1.0.zip", "lung_lobes_v0.1.0.zip.sig", "model_info.json"} <= set(page.all("a", "href"))
    for shown in (
        "1 bundle in 1 version.",
        "The lungs",
        "Segmentation of lobes",
        "0.905mean dice",
        "Version 0.1.0, 2026-01-31, lung_lobes_v0.1.0.zip (1.2 MB)",
        "Licence Apache-2.0",
        f"SHA-256 {'a' * 64}",
        "Signature lung_lobes_v0.1.0.zip.sig",
        "python -m volseg download lung_lobes==0.1.0 --registry REGISTRY --bundle_dir bundles",
        "python -m monai.bundle download --name lung_lobes --url REGISTRY/lung_lobes_v0.1.0.zip --bundle_dir bundles",
    ):
        assert shown in page.text


def test_a_card_shows_the_newest_version_and_lists_them_from_there():
    page = registry_page([entry(version=version) for version in ("0.2.0", "0.9.0", "0.10.0")] + [entry("prostate")])
    assert page.count("<article") == 2
    assert "2 bundles in 4 versions." in page
    assert "running one means trusting its publisher" in page
    assert "lung_lobes==0.10.0" in page
    assert re.findall(r'<li><a href="[^"]*">([^<]*)', page) == ["0.10.0", "0.9.0", "0.2.0", "0.1.0"]


def test_an_address_that_is_known_stands_in_the_commands():
    page = Text(registry_page([entry(source="https://example.org/bundles/lung_lobes_v0.1.0.zip")])).text
    assert "REGISTRY" not in page.partition("// the address")[0]
    assert "--registry https://example.org/bundles --bundle_dir" in page
    assert "--url https://example.org/bundles/lung_lobes_v0.1.0.zip --bundle_dir" in page


def test_everything_that_a_bundle_says_is_text():
    harm = "<script>alert(1)</script>\"'&{{ 1 + 1 }}"
    texts = dict.fromkeys(("title", "task", "license", "picture", "signature", "source", "sha256", "date"), harm)
    page = registry_page([entry(**texts, metrics={harm: 0.5})])
    assert page.count("<script>") == 1  # the page's own
    assert {tag for tag, _ in Text(page).elements} == {tag for tag, _ in Text(registry_page([full_entry()])).elements}
    assert Text(page).all("img", "alt") == [f"A result of {harm}"]
    assert "{{ 1 + 1 }}" in Text(page).text


def full_entry() -> Entry:
    return entry(metrics={"mean_dice": 0.5}, picture="picture.png", signature="signature")


def test_nothing_comes_from_elsewhere():
    page = Text(registry_page([full_entry()]))
    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert addresses
    assert not any(re.match(r"\w+:|//", address) for address in addresses)


def test_an_empty_registry_says_so():
    assert "No bundle yet." in registry_page([])


# what the browser knows of the pictures and the layout, written where --dump-dom shows it
PROBE = b"""<script>addEventListener("load", () => {
    const widths = [...document.images].map((image) => image.naturalWidth);
    document.body.dataset.widths = widths.join();
    document.body.dataset.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
})</script>"""


class ProbingHandler(QuietHandler):
    """Serves files, and the page with a probe at its end."""

    def do_GET(self) -> None:  # noqa: N802 - the server's name
        if self.path != "/probe.html":
            super().do_GET()
            return
        content = (Path(self.directory) / "index.html").read_bytes() + PROBE
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)


def in_browser(address: str, profile: Path, width: int = 1200) -> str:
    """The document as a headless browser has it after all scripts."""
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not program:
        pytest.skip("no chromium is installed")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --window-size={width},900 --user-data-dir={profile} --dump-dom"
    )
    command = [program, *options.split(), address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_pictures_and_commands_that_work(width, registry, tmp_path):
    for name, version in [("lung_lobes", "0.9.0"), ("lung_lobes", "0.10.0"), ("prostate", "0.1.0")]:
        publish(str(write_zip(tmp_path, name, version)), str(registry))
    with served(partial(ProbingHandler, directory=str(registry))) as address:
        document = in_browser(f"{address}/probe.html", tmp_path / "profile", width)
        page = Text(document)
        ((_, body),) = [element for element in page.elements if element[0] == "body"]
        assert body == {"data-widths": "31,31", "data-overflow": "0"}
        assert document.count('<button type="button">Copy</button>') == 4
        commands = re.findall(r"python -m \S+ download .*? --bundle_dir bundles(?=[A-Z])", page.text)
        by_monai = "python -m monai.bundle download --name"
        assert commands == [
            f"python -m volseg download lung_lobes==0.10.0 --registry {address} --bundle_dir bundles",
            f"{by_monai} lung_lobes --url {address}/lung_lobes_v0.10.0.zip --bundle_dir bundles",
            f"python -m volseg download prostate==0.1.0 --registry {address} --bundle_dir bundles",
            f"{by_monai} prostate --url {address}/prostate_v0.1.0.zip --bundle_dir bundles",
        ]
        if width == 1200:  # once
            command = [sys.executable, *shlex.split(commands[0])[1:]]
            installed = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            subprocess.run(command, check=True, cwd=tmp_path, env=installed, capture_output=True)
            manifest, changes = verify(tmp_path / "bundles" / "lung_lobes")
            assert (manifest.release.version, changes) == ("0.10.0", [])
