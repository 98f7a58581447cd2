# SPDX-License-Identifier: Apache-2.0
"""MONAI's own clients, as they are published, against what ``publish`` writes: by URL, from GitHub, from the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import monai.bundle
import pytest
import requests
import torch
from huggingface_hub import ModelCard

from tests.tools.conftest import METADATA
from tests.tools.hub_server import Hub, HubHandler
from tests.tools.registry_fixtures import (
    files_of,
    png,
    served,
    served_folder,
    write_zip,
)
from tools.markdown import linked_files
from tools.pack import CARD
from tools.publish import publish
from volseg.registry import download, verify

NAME = "tiny_segmentation"


@pytest.fixture
def contents(tiny_bundle) -> dict[str, bytes]:
    """A bundle that MONAI can load, with weights that no initialization gives."""
    torch.save({"weight": torch.full((2, 1, 1, 1, 1), 0.25)}, tiny_bundle.root / "models" / "model.pt")
    (tiny_bundle.root / "configs" / "logging.conf").unlink()  # a text that says nothing
    return files_of(tiny_bundle.root)


def of_version(contents: dict[str, bytes], version: str) -> dict[str, bytes]:
    metadata = contents["configs/metadata.json"].replace(b'"version": "0.1.0"', f'"version": "{version}"'.encode())
    return contents | {"configs/metadata.json": metadata}


def published(contents: dict[str, bytes], registry: Path, *versions: str, **options: str) -> None:
    for version in versions:
        path = write_zip(registry.with_name("zips"), NAME, version, of_version(contents, version))
        publish(str(path), str(registry), **options)


def installed_version(bundle_dir: Path) -> str:
    """The version of a bundle that is as it was released."""
    manifest, changes = verify(bundle_dir / NAME)
    assert changes == []
    return manifest.release.version


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_monai_downloads_from_a_url_and_loads(scheme, contents, registry, tmp_path, monkeypatch):
    published(contents, registry, "0.9.0", "0.10.0")
    bundle_dir = tmp_path / "installed"
    with served_folder(registry) if scheme == "http" else contextlib.nullcontext(registry.as_uri()) as address:
        command = f"-m monai.bundle download --name {NAME} --url {address}/{NAME}_v0.10.0.zip --bundle_dir {bundle_dir}"
        if scheme == "http":  # what a user types
            subprocess.run([sys.executable, *command.split()], check=True, capture_output=True, cwd=tmp_path)
        else:
            monai.bundle.download(name=NAME, url=f"{address}/{NAME}_v0.10.0.zip", bundle_dir=bundle_dir)
    assert installed_version(bundle_dir) == "0.10.0"
    monkeypatch.syspath_prepend(bundle_dir / NAME)
    with monkeypatch.context() as patch:  # modules of the bundle stay in this test
        patch.setattr(sys, "modules", dict(sys.modules))
        network = monai.bundle.load(NAME, bundle_dir=bundle_dir, device="cpu")
    assert type(network).__name__ == "TinyNet"
    assert network.weight.flatten().tolist() == [0.25, 0.25]


def test_monai_skips_a_second_download_so_that_a_newer_version_needs_another_folder(
    contents,
    registry,
    tmp_path,
):
    """What the documentation of a registry warns of."""
    published(contents, registry, "0.9.0", "0.10.0")
    for version in ("0.9.0", "0.10.0"):
        url = f"{registry.as_uri()}/{NAME}_v{version}.zip"
        monai.bundle.download(name=NAME, url=url, bundle_dir=tmp_path / "installed")
    assert installed_version(tmp_path / "installed") == "0.9.0"


@pytest.fixture
def github(tmp_path, monkeypatch):
    """A web server that answers for GitHub's hosts, to both of the HTTP clients that MONAI uses."""
    with served_folder(tmp_path / "hosts") as address:

        def routed(url: str) -> str:
            parsed = urlparse(url)
            assert parsed.netloc in ("github.com", "raw.githubusercontent.com")
            return f"{address}/{parsed.netloc}{parsed.path}"

        class Handler(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> object:
                return self.parent.open(routed(request.full_url))

        send = requests.adapters.HTTPAdapter.send

        def send_routed(adapter: object, request: requests.PreparedRequest, **options: object) -> requests.Response:
            request.url = routed(request.url)
            return send(adapter, request, **options)

        monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(Handler))
        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_routed)
        yield tmp_path / "hosts"


class TestGithub:
    BASE_URL = "https://github.com/owner/repo/releases/download/bundles"

    @pytest.fixture(autouse=True)
    def released(self, contents, registry, github):
        """The tree, uploaded: ``release`` as assets of a release, ``models`` committed under the release's tag."""
        published(contents, registry, "0.9.0", "0.10.0", layout="github", base_url=self.BASE_URL)
        for place, folder in [
            ("github.com/owner/repo/releases/download/bundles", "release"),
            ("raw.githubusercontent.com/owner/repo/bundles/models", "models"),
        ]:
            (github / place).parent.mkdir(parents=True)
            (github / place).symlink_to(registry / folder)

    @pytest.mark.parametrize(("version", "received"), [(None, "0.10.0"), ("0.9.0", "0.9.0")])
    def test_monai_takes_the_newest_version_or_the_one_that_is_asked_for(self, version, received, tmp_path):
        monai.bundle.download(
            name=NAME, version=version, source="github", repo="owner/repo/bundles", bundle_dir=tmp_path / "installed"
        )
        assert installed_version(tmp_path / "installed") == received

    def test_monai_lists_the_newest_versions_and_where_they_are(self):
        repository = {"repo": "owner/repo", "tag": "bundles"}
        assert monai.bundle.get_all_bundles_list(**repository) == [(NAME, "0.10.0")]
        assert monai.bundle.get_bundle_info(NAME, **repository) == {
            "name": f"{NAME}_v0.10.0",
            "browser_download_url": f"{self.BASE_URL}/{NAME}_v0.10.0.zip",
        }

    def test_the_assets_are_a_registry_for_the_client_of_this_package(self, tmp_path):
        download(f"{NAME}==0.9.0", self.BASE_URL, tmp_path / "installed", progress=False)
        assert installed_version(tmp_path / "installed") == "0.9.0"


class TestHuggingface:
    def test_what_is_pushed_comes_back_as_it_was_released(self, contents, tmp_path, capsys):
        """The program that publish shows, for two versions, then MONAI's download; the Hub is on loopback."""
        card = b"**Tags:** CT, lung\nlobes.\n![A](figures/a.png) [results](results/test_set.json)\n\n" + contents[CARD]
        contents = contents | {CARD: card, "docs/figures/a.png": png()}
        results = json.loads(contents["docs/results/test_set.json"])
        results["weights_sha256"] = hashlib.sha256(contents["models/model.pt"]).hexdigest()
        others = {"eval_metrics": results["eval_metrics"], "weights_sha256": "0" * 64}
        contents |= {"docs/results/test_set.json": json.dumps(results).encode()}
        contents |= {"docs/results/other_weights.json": json.dumps(others).encode()}
        programs = []
        for version, files in [("0.9.0", contents | {"docs/old.md": b"Old."}), ("0.10.0", contents)]:
            published(files, tmp_path / version, version, layout="huggingface")
            shown = capsys.readouterr().out.splitlines()[-1].replace("OWNER", "owner")
            python, option, program = shlex.split(shown)
            assert (python, option) == ("python", "-c")
            programs.append(program)
        programs.append("from monai.bundle import download")
        programs += [
            f"download({NAME!r}, {version!r}, {str(tmp_path / 'installed' / version)!r}, "
            f"'huggingface_hub', 'owner/{NAME}')"
            for version in ("0.9.0", "0.10.0")
        ]
        hub = Hub()
        with served(partial(HubHandler, hub=hub)) as address:
            # files go through the plain protocol of the Hub, not through that of its chunk store
            environment = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache")}
            run = [sys.executable, "-c", "; ".join(programs)]
            subprocess.run(run, check=True, capture_output=True, env=os.environ | environment)
        assert list(hub.repositories[f"owner/{NAME}"].tags) == ["0.9.0", "0.10.0"]
        for version in ("0.9.0", "0.10.0"):
            assert installed_version(tmp_path / "installed" / version) == version
        newest = tmp_path / "installed" / "0.10.0" / NAME
        assert not (newest / "docs" / "old.md").exists()
        shown = ModelCard.load(newest / "README.md")
        assert (shown.data.license, shown.data.library_name) == ("cc-by-4.0", "monai")
        assert shown.data.tags == ["monai", "CT", "lung lobes"]
        assert shown.data.model_name == METADATA["name"]
        measures = {measure.metric_type: measure for measure in shown.data.eval_results}
        assert {name: m.metric_value for name, m in measures.items()} == {"mean_dice": 0.5, "per_lobe upper": 0.25}
        assert {m.dataset_name for m in measures.values()} == {"test_set, see docs/results/test_set.json"}
        linked = linked_files(shown.text, "README.md")
        assert linked == ["docs/figures/a.png", "docs/results/test_set.json"]
        assert [path for path in linked if path not in hub.repositories[f"owner/{NAME}"].files("0.10.0")] == []
