# SPDX-License-Identifier: Apache-2.0
"""Packing a tiny bundle in a git checkout of its own: what is inside, the same bytes, and what stops it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tools import REPOSITORY
from tools import pack as module
from tools.pack import pack
from tools.sbom import SBOM
from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.registry.manifest import MANIFEST, Manifest

NAME = "tiny_segmentation"
ZIP = f"{NAME}_v0.1.0.zip"
PACK = """
import sys
from pathlib import Path
from tools import pack as module
module.REPOSITORY = Path(sys.argv[1])
module.pack(*sys.argv[2:])
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Tests", "-c", "user.email=tests@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def files_of(path: Path) -> dict[str, bytes]:
    """The content of every entry of a zip by its name, in the order of the zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def manifest_of(path: Path) -> dict:
    return json.loads(files_of(path)[f"{NAME}/{MANIFEST}"])


@pytest.fixture
def checkout(tiny_bundle, tmp_path, monkeypatch) -> Path:
    """A commit of the tiny bundle and of a volseg with a subpackage called data; the repository that is packed from."""
    for path in ("__init__.py", "data/__init__.py", "data/volumes.py"):
        file = tmp_path / "volseg" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {path}\n")
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--force", "bundles", "volseg", ".gitignore")
    git(tmp_path, "commit", "--quiet", "--message", "Tiny")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    return tmp_path


@pytest.fixture
def refused(tmp_path):
    """``refused(*arguments, words=..., **options)``: one line with these words, and no file in the output folder."""

    def check(*arguments: object, words: tuple[str, ...], **options: object) -> None:
        with pytest.raises(UserError) as caught:
            pack(*arguments, **options)
        text = str(caught.value)
        assert [word for word in words if word not in text] == [], text
        assert "\n" not in text
        assert "; " in text
        assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())

    return check


def test_zip_holds_what_version_control_knows_and_volseg(checkout, tiny_bundle):
    for left in (
        f"{NAME}/__pycache__/network.pyc",
        "data/phantom/case.nii.gz",
        "output/train/model.pt",
        "models/model_released.pt",
        "models/practical/model.pt",
    ):
        tiny_bundle.write(left, "left by a training")
    (checkout / "volseg" / "__pycache__").mkdir()
    (checkout / "volseg" / "__pycache__" / "a.pyc").write_bytes(b"")
    pack(NAME, checkout / "out")
    assert [path.name for path in (checkout / "out").iterdir()] == [ZIP]
    packed = files_of(checkout / "out" / ZIP)
    tracked = git(checkout, "ls-files", "bundles", "volseg").splitlines()
    expected = {path.removeprefix("bundles/") if path.startswith("b") else f"{NAME}/{path}": path for path in tracked}
    assert packed.keys() == {*expected, f"{NAME}/{MANIFEST}", f"{NAME}/{SBOM}"}
    assert f"{NAME}/volseg/data/volumes.py" in packed
    card = f"{NAME}/docs/README.md"
    assert [n for n, path in expected.items() if n != card and packed[n] != (checkout / path).read_bytes()] == []
    with zipfile.ZipFile(checkout / "out" / ZIP) as archive:
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}


def test_commands_of_the_packed_card_are_those_of_the_unpacked_bundle(checkout):
    path = checkout / f"bundles/{NAME}/docs/README.md"
    written = path.read_text()
    path.write_text(f"{written}Paths start in the folder that\ncontains `bundles/{NAME}/`.\n")
    pack(NAME, checkout / "out")
    card = files_of(checkout / "out" / ZIP)[f"{NAME}/docs/README.md"].decode()
    assert "--config_file configs/inference.json`" in card
    assert card == written.replace(f"bundles/{NAME}/", "") + "Paths start in the bundle's folder.\n"


def test_pages_that_the_card_links_to_travel_with_it(checkout):
    (checkout / "docs").mkdir()
    (checkout / "docs/training.md").write_text(
        "Run `bundles/NAME/configs/a.json`. See [the speed](speed.md), "
        f"[the card](../bundles/{NAME}/docs/README.md#data) and [another](../bundles/other/docs/README.md).\n"
    )
    (checkout / "docs/speed.md").write_text("No card links to this one.\n")
    with (checkout / f"bundles/{NAME}/docs/README.md").open("a") as card:
        card.write("See [Training](../../../docs/training.md#all) and [the code](../../../volseg/__init__.py).\n")
    pack(NAME, checkout / "out")
    files = {path.removeprefix(f"{NAME}/"): data for path, data in files_of(checkout / "out" / ZIP).items()}
    assert files["docs/README.md"].decode().endswith("See [Training](training.md#all) and the code.\n")
    page = "Run `configs/a.json`. See the speed, [the card](README.md#data) and another.\n"
    assert files["docs/training.md"].decode() == page
    assert "docs/speed.md" not in files
    assert manifest_of(checkout / "out" / ZIP)["revision"].endswith("-dirty")


def test_manifest_says_where_every_file_comes_from(checkout, capsys):
    pack(NAME, checkout / "out")
    content = manifest_of(checkout / "out" / ZIP)
    files = files_of(checkout / "out" / ZIP)
    assert content == {
        "name": NAME,
        "version": "0.1.0",
        "revision": git(checkout, "rev-parse", "HEAD"),
        "licenses": {"code": "Apache-2.0", "weights": "Apache-2.0"},
        "required_packages": {"monai": "1.6.1", "nibabel": "5.4.2", "numpy": "2.4.6", "torch": "2.13.0"},
        "files": {
            name.removeprefix(f"{NAME}/"): {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
            if name != f"{NAME}/{MANIFEST}"
        },
    }
    assert content["revision"] in capsys.readouterr().out


def test_packed_bundle_unpacks_to_what_its_manifest_says(checkout, tmp_path):
    pack(NAME, checkout / "out")
    manifest = unpack(checkout / "out" / ZIP, tmp_path / "unpacked")
    assert Manifest.read(tmp_path / "unpacked") == manifest
    assert manifest.changes(tmp_path / "unpacked") == []


def test_uncommitted_changes_show_in_the_revision(checkout, tiny_bundle):
    revision = git(checkout, "rev-parse", "HEAD")
    (checkout / "elsewhere.txt").write_text("not packed")
    tiny_bundle.write("models/practical/model.pt", "not packed")
    pack(NAME, checkout / "out")
    assert manifest_of(checkout / "out" / ZIP)["revision"] == revision
    for path in (f"bundles/{NAME}/docs/new.md", "volseg/data/volumes.py"):
        (checkout / path).write_text("new\n")
        pack(NAME, checkout / "out")
        assert manifest_of(checkout / "out" / ZIP)["revision"] == f"{revision}-dirty"
        git(checkout, "add", path)
        git(checkout, "commit", "--quiet", "--message", "New")
        revision = git(checkout, "rev-parse", "HEAD")


def test_same_bytes_again_and_from_a_clone_in_another_world(checkout, tmp_path):
    pack(NAME, checkout / "out")
    first = (checkout / "out" / ZIP).read_bytes()
    pack(NAME, checkout / "out")
    assert (checkout / "out" / ZIP).read_bytes() == first

    clone = tmp_path / "elsewhere" / "clone"
    clone.parent.mkdir()
    subprocess.run(["git", "clone", "--quiet", checkout, clone], check=True, umask=0o077)
    for path in clone.rglob("*"):
        os.utime(path, (1e9, 1e9))
    environment = {"LC_ALL": "C", "TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-c", PACK, clone, NAME, tmp_path / "out2"],
        env=os.environ | environment,
        cwd=clone.parent,
        umask=0o077,
        check=True,
    )
    assert (tmp_path / "out2" / ZIP).read_bytes() == first


def test_other_weights_replace_the_bundles_own_and_bring_their_record(checkout, tiny_bundle, tmp_path):
    tiny_bundle.write("models/model.json", '{"epoch": 1}')
    git(checkout, "add", "--force", "bundles")
    other = tmp_path / "trained" / "best.pt"
    other.parent.mkdir()
    torch.save({"weight": torch.ones(1)}, other)
    pack(NAME, checkout / "out", model=str(other))
    files = files_of(checkout / "out" / ZIP)
    assert files[f"{NAME}/models/model.pt"] == other.read_bytes()
    assert f"{NAME}/models/model.json" not in files  # the record of other weights
    assert manifest_of(checkout / "out" / ZIP)["licenses"] == {"code": "Apache-2.0", "weights": "NOASSERTION"}

    other.with_suffix(".json").write_text('{"epoch": 7}')
    pack(NAME, checkout / "out", model=str(other), weights_license="CC-BY-4.0")
    assert files_of(checkout / "out" / ZIP)[f"{NAME}/models/model.json"] == b'{"epoch": 7}'
    assert manifest_of(checkout / "out" / ZIP)["licenses"]["weights"] == "CC-BY-4.0"


def test_bundle_without_weights_says_how_to_give_some(checkout, tiny_bundle, capsys):
    (tiny_bundle.root / "models" / "model.pt").unlink()
    pack(NAME, checkout / "out")
    assert manifest_of(checkout / "out" / ZIP)["licenses"] == {"code": "Apache-2.0"}
    assert f"--model bundles/{NAME}/models/model.pt" in capsys.readouterr().out


def test_finding_of_the_check_stops_packing(checkout, tiny_bundle, refused, capsys):
    (tiny_bundle.root / "LICENSE").unlink()
    refused(NAME, checkout / "out", words=("not packed", "1 findings"))
    assert f"bundles/{NAME}/LICENSE: the file is missing" in capsys.readouterr().out
    assert not (checkout / "out").exists()


@pytest.mark.parametrize("name", ["other", "", ".", f"../bundles/{NAME}"])
def test_unknown_name(checkout, refused, name):
    refused(name, checkout / "out", words=(f"has no bundle {name!r}", NAME))


def test_model_that_is_no_weights(checkout, refused, tmp_path):
    out = checkout / "out"
    refused(NAME, out, model=tmp_path / "none.pt", words=("none.pt", "No such file"))
    refused(NAME, out, model=tmp_path, words=(str(tmp_path), "no weights"))
    (tmp_path / "text.pt").write_text("text")
    refused(NAME, out, model=tmp_path / "text.pt", words=("text.pt", "no weights"))
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(NAME, out, model=tmp_path / "empty.pt", words=("empty.pt", "no weights"))
    torch.save({"epoch": 3, "network": {"weight": torch.ones(1)}}, tmp_path / "checkpoint.pt")
    refused(NAME, out, model=tmp_path / "checkpoint.pt", words=("checkpoint.pt", "no weights", "checkpoint"))


def test_file_that_no_reader_would_unpack_is_not_packed(checkout, tiny_bundle, refused):
    tiny_bundle.write("README.md", "the Hub would put its own here")
    refused(NAME, checkout / "out", words=("'README.md'",))


def test_folder_that_cannot_be_written(checkout, refused):
    (checkout / "file").write_text("")
    refused(NAME, checkout / "file", words=("file", "cannot be written"))
    refused(NAME, "/proc/none", words=("/proc/none", "cannot be written"))


def test_full_disk_leaves_nothing_behind(checkout, refused):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes
        refused(NAME, checkout / "out", words=(ZIP, "cannot be written"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_outside_of_a_git_checkout(checkout, refused):
    shutil.rmtree(checkout / ".git")
    refused(NAME, checkout / "out", words=(str(checkout), "not a git checkout"))
