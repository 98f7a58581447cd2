# SPDX-License-Identifier: Apache-2.0
"""The folder for a pull request to MONAI's model zoo, and what the zoo's reviewers look at in every bundle."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from monai.bundle import ConfigParser

from tools import REPOSITORY
from tools import pack as module
from tools.check.files import LARGEST_MB
from tools.pack import bundle_names
from tools.zoo import zoo
from volseg.errors import UserError
from volseg.registry.large_files import LARGE_FILES
from volseg.registry.manifest import sha256

NAME = "tiny_segmentation"


@pytest.fixture
def checkout(tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "volseg").mkdir()
    (tmp_path / "volseg" / "__init__.py").write_text("")
    for arguments in (["init"], ["add", "--force", "bundles", "volseg"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org"]
    commit = ["git", "-C", str(tmp_path), *identity, "commit", "--message", "Tiny"]
    subprocess.run(commit, check=True, capture_output=True)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    return tmp_path


def files_of(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_folder_holds_the_bundle_and_volseg(checkout, tiny_bundle):
    out = checkout / "out"
    (out / "models" / NAME).mkdir(parents=True)
    (out / "models" / NAME / "left.txt").write_text("of a version before")
    (out / "models" / "model_info.json").write_text("{}")
    zoo(NAME, str(out))
    assert files_of(out / "models" / NAME) == files_of(tiny_bundle.root) | {"volseg/__init__.py"}
    assert files_of(out) - {f"models/{NAME}/{path}" for path in files_of(out / "models" / NAME)} == {
        "models/model_info.json"
    }


def test_weights_that_are_published_elsewhere_are_listed(checkout, tiny_bundle):
    zoo(NAME, str(checkout / "out"), weights_url="https://example.org/weights/")
    folder = checkout / "out" / "models" / NAME
    assert list(folder.rglob("*.pt")) == []
    [entry] = yaml.safe_load((folder / LARGE_FILES).read_text())["large_files"]
    upload = checkout / "out" / "large_files" / NAME / "model.pt"
    assert upload.read_bytes() == (tiny_bundle.root / "models" / "model.pt").read_bytes()
    assert entry == {
        "path": "models/model.pt",
        "url": "https://example.org/weights/model.pt",
        "hash_val": sha256(upload),
        "hash_type": "sha256",
    }


def test_address_that_is_none_leaves_nothing(checkout):
    with pytest.raises(UserError, match=r"weights_url.*ftp://example.org"):
        zoo(NAME, str(checkout / "out"), weights_url="ftp://example.org")
    assert files_of(checkout / "out") == set()


def test_unknown_bundle_is_named(checkout):
    with pytest.raises(UserError, match="has no bundle 'unet'"):
        zoo("unet", str(checkout / "out"))


@pytest.fixture(params=bundle_names())
def bundle(request):
    return REPOSITORY / "bundles" / request.param


def test_version_has_an_entry_in_the_changelog(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["name"] != bundle.name  # shown to readers of the zoo's page


def test_files_that_the_zoo_needs_are_there_and_small(bundle):
    for path in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt"):
        assert 0 < (bundle / path).stat().st_size <= LARGEST_MB * 2**20


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("inference", ("bundle_root", "device", "network_def", "inferer", "output_dir")),
        (
            "train",
            (
                *("bundle_root", "device", "dataset_dir", "output_dir", "network_def", "val_interval"),
                *("train#trainer", "train#trainer#max_epochs", "train#dataset", "train#dataset#data"),
                *("train#handlers", "train#inferer", "validate#evaluator", "validate#handlers", "validate#dataset"),
                *("validate#dataset#data", "validate#preprocessing", "validate#key_metric"),
            ),
        ),
    ],
)
def test_configs_have_the_keys_by_which_programs_change_them(bundle, config, keys):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / f"{config}.json")
    assert [key for key in keys if key not in parser] == []
    if config == "train":
        intervals = [h["interval"] for h in parser["train#handlers"] if "ValidationHandler" in h.get("_target_", "")]
        assert set(intervals) == {"@val_interval"}
