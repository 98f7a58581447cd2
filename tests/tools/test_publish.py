# SPDX-License-Identifier: Apache-2.0
"""Releases: their index, what is refused, several publishers at once, publishers that are killed."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from tests.tools.registry_fixtures import (
    bundle_contents,
    ended,
    files_of,
    fork,
    write_zip,
)
from tools import REPOSITORY
from tools.publish import publish
from volseg.errors import UserError
from volseg.registry import read_index
from volseg.registry.location import locate
from volseg.registry.signature import check_signature

WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir")


def index_of(registry: Path) -> dict[str, dict]:
    return json.loads((registry / "model_info.json").read_text())


def refusal(function: Callable[[], None]) -> tuple[int, str]:
    """How a process ends that calls a function, and the message if it is a user's mistake."""
    message, write = os.pipe()

    def run() -> None:
        try:
            function()
        except UserError as error:
            os.write(write, str(error).encode())

    process = fork(run)
    os.close(write)
    with os.fdopen(message) as opened:
        return ended(process), opened.read()


def assert_whole(registry: Path) -> None:
    """Whatever the index names is there, with its checksum, and the index is none that is half-written."""
    for entry in read_index(locate(registry)) if (registry / "model_info.json").exists() else []:
        data = (registry / entry.source).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry.sha256, entry.size)
        assert all((registry / name).is_file() for name in (entry.picture, entry.signature) if name)


def test_the_index_has_the_keys_of_the_zoo_and_more(registry, tmp_path, capsys):
    path = write_zip(tmp_path, "lung_lobes", "0.1.0")
    before = datetime.datetime.now(datetime.UTC).date()
    publish(str(path), str(registry))
    data = path.read_bytes()
    (entry,) = index_of(registry).values()
    assert before <= datetime.date.fromisoformat(entry.pop("date")) <= datetime.datetime.now(datetime.UTC).date()
    assert list(index_of(registry)) == ["lung_lobes_v0.1.0"]
    assert entry == {
        "checksum": hashlib.sha1(data).hexdigest(),
        "source": "lung_lobes_v0.1.0.zip",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "unpacked_size": sum(map(len, bundle_contents("lung_lobes", "0.1.0").values())),
        "license": "Apache-2.0 AND CC-BY-4.0",
        "signature": "",
        "title": "The lung_lobes",
        "task": "Segmentation for tests",
        "metrics": {"mean_dice": 0.9, "per_lobe upper": 0.25},
        "manifest_sha256": hashlib.sha256(zipfile.ZipFile(path).read("lung_lobes/manifest.json")).hexdigest(),
        "picture": "lung_lobes_v0.1.0.png",
    }
    assert (registry / "lung_lobes_v0.1.0.zip").read_bytes() == data
    assert (registry / "lung_lobes_v0.1.0.png").read_bytes() == bundle_contents("", "")["docs/figures/phantom.png"]
    assert capsys.readouterr().out == f"{registry}: lung_lobes_v0.1.0 is released, 1 version, see index.html\n"


def test_versions_are_in_the_order_of_numbers(registry, tmp_path):
    for version in ("0.10.0", "0.9.0", "1.0.0", "0.2.11"):
        publish(str(write_zip(tmp_path, "lung_lobes", version)), str(registry))
    assert [key.partition("_v")[2] for key in index_of(registry)] == ["0.2.11", "0.9.0", "0.10.0", "1.0.0"]


def test_the_same_zip_again_changes_nothing(registry, tmp_path, capsys):
    path = write_zip(tmp_path, "lung_lobes", "0.1.0")
    publish(str(path), str(registry))
    before = files_of(registry)
    publish(str(path), str(registry))
    assert files_of(registry) == before
    assert capsys.readouterr().out.splitlines()[1].endswith("lung_lobes_v0.1.0 was released, 1 version, see index.html")


def test_a_released_version_is_never_overwritten(registry, tmp_path):
    publish(str(write_zip(tmp_path, "lung_lobes", "0.1.0")), str(registry))
    before = files_of(registry)
    other = write_zip(tmp_path / "other", "lung_lobes", "0.1.0", task="Another one")
    with pytest.raises(UserError, match=r"lung_lobes_v0\.1\.0 is already released with other contents"):
        publish(str(other), str(registry))
    assert files_of(registry) == before


def test_a_base_url_is_where_the_zips_are(registry, tmp_path):
    publish(str(write_zip(tmp_path, "lung_lobes", "0.1.0")), str(registry), base_url="https://example.org/bundles/")
    (entry,) = index_of(registry).values()
    assert entry["source"] == "https://example.org/bundles/lung_lobes_v0.1.0.zip"


def test_an_object_store_holds_the_same_files(registry, tmp_path):
    url = f"memory://{uuid.uuid4()}/bundles"
    for version in ("0.9.0", "0.10.0"):
        for place in (str(registry), url):
            publish(str(write_zip(tmp_path, "lung_lobes", version)), place)
    file_system, folder = fsspec.core.url_to_fs(url)
    stored = {path.rpartition("/")[2]: file_system.cat_file(path) for path in file_system.ls(folder, detail=False)}
    assert stored == files_of(registry)


@pytest.mark.parametrize("publishers", [2, 8])
def test_publishers_at_once_lose_nothing(publishers, registry, tmp_path):
    zips = [write_zip(tmp_path, "lung_lobes", f"0.{i}.0") for i in range(publishers)]
    wait, start = os.pipe()

    def publisher(path: Path) -> Callable[[], None]:
        def run() -> None:
            os.close(start)
            os.read(wait, 1)  # until all are there
            publish(str(path), str(registry))

        return run

    processes = [fork(publisher(path)) for path in zips]
    os.close(start)
    os.close(wait)
    assert [ended(process) for process in processes] == [0] * publishers
    assert list(index_of(registry)) == [path.stem for path in zips]
    assert_whole(registry)
    page = (registry / "index.html").read_text()
    assert all(f"{path.name}" in page for path in zips)


def test_of_publishers_of_one_version_at_once_one_wins(registry, tmp_path):
    zips = [write_zip(tmp_path / str(i), "lung_lobes", "0.1.0", task=f"Task {i}") for i in range(3)]
    processes = [fork(lambda path=path: publish(str(path), str(registry))) for path in zips]
    assert sorted(ended(process) for process in processes) == [0, 1, 1]
    assert_whole(registry)


def test_a_publisher_that_is_killed_at_any_step_leaves_a_whole_registry(registry, tmp_path):
    """SIGKILL before the k-th change of a file of the registry, for every k until one runs to its end."""
    old, new = (write_zip(tmp_path, "lung_lobes", version) for version in ("0.9.0", "0.10.0"))
    before = tmp_path / "before"
    publish(str(old), str(before))
    killed = 0
    while True:

        def run(kill_at: int = killed) -> None:
            operations = 0

            def hook(event: str, arguments: tuple) -> None:
                nonlocal operations
                changes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
                if changes and str(registry) in str(arguments[0]):
                    if operations == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    operations += 1

            sys.addaudithook(hook)
            publish(str(new), str(registry))

        shutil.rmtree(registry, ignore_errors=True)
        shutil.copytree(before, registry)
        status = ended(fork(run))
        assert_whole(registry)
        assert "lung_lobes_v0.9.0" in index_of(registry)
        publish(str(new), str(registry))
        assert list(index_of(registry)) == ["lung_lobes_v0.9.0", "lung_lobes_v0.10.0"]
        assert_whole(registry)
        assert not list(registry.glob("*.unfinished"))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
    assert killed > 12  # lock, zip, picture, entry, index, page


@pytest.mark.parametrize("limit", [0, 1, 100, 350, 600, 2000])
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_disk_that_is_full_or_a_kill_in_the_middle_of_a_file_leaves_a_whole_registry(
    limit,
    is_killed,
    registry,
    tmp_path,
):
    """No file may grow beyond so many bytes; the system kills for it, or refuses to write."""
    old, new = (write_zip(tmp_path, "lung_lobes", version) for version in ("0.9.0", "0.10.0"))
    publish(str(old), str(registry))
    before = files_of(registry)

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if is_killed else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        publish(str(new), str(registry))

    status, message = refusal(run)
    assert status == (-signal.SIGXFSZ if is_killed else 0)
    assert is_killed or re.fullmatch(
        r".*: cannot be written: File too large; check the free space and permissions", message
    )
    assert_whole(registry)
    assert files_of(registry)["lung_lobes_v0.9.0.zip"] == before["lung_lobes_v0.9.0.zip"]
    assert index_of(registry).keys() >= {"lung_lobes_v0.9.0"}
    publish(str(new), str(registry))
    assert list(index_of(registry)) == ["lung_lobes_v0.9.0", "lung_lobes_v0.10.0"]
    assert_whole(registry)


def not_a_zip(folder: Path) -> Path:
    path = folder / "lung_lobes_v0.1.0.zip"
    path.write_bytes(b"no zip")
    return path


def renamed(folder: Path) -> Path:
    return write_zip(folder, "lung_lobes", "0.1.0").rename(folder / "lung_lobes_v0.2.0.zip")


def of_another_version(folder: Path) -> Path:
    return write_zip(folder, "lung_lobes", "0.1.0", bundle_contents("lung_lobes", "0.2.0"))


def without_metadata(folder: Path) -> Path:
    return write_zip(folder, "lung_lobes", "0.1.0", {"LICENSE": b"Text."})


def with_strange_metadata(folder: Path) -> Path:
    return write_zip(folder, "lung_lobes", "0.1.0", {"configs/metadata.json": b"[1]"})


def with_strange_metrics(folder: Path) -> Path:
    return write_zip(folder, "lung_lobes", "0.1.0", eval_metrics={"mean_dice": "high"})


def tampered(folder: Path) -> Path:
    path = write_zip(folder, "lung_lobes", "0.1.0")
    path.write_bytes(path.read_bytes().replace(b"weights of", b"WEIGHTS of"))
    return path


UNREADABLE = [
    (
        lambda folder: folder / "none.zip",
        r"none\.zip: no such file; make a zip with `python -m tools pack`",
    ),
    (not_a_zip, r"lung_lobes_v0\.1\.0\.zip: cannot be read as a zip"),
    (renamed, r"lung_lobes_v0\.2\.0\.zip: contains lung_lobes_v0\.1\.0 and must be named after it"),
    (tampered, r"download or pack it again|get the zip again"),
]
WITHOUT_FACTS = [
    (of_another_version, r"is version 0\.2\.0 in its metadata, 0\.1\.0 in its manifest"),
    (without_metadata, r"configs/metadata\.json is unusable: FileNotFoundError"),
    (with_strange_metadata, r"configs/metadata\.json is unusable: TypeError"),
    (with_strange_metrics, r"configs/metadata\.json is unusable: ValueError"),
]


@pytest.mark.parametrize(
    ("layout", "make", "line"),
    [
        *[("folder", *zip_and_line) for zip_and_line in UNREADABLE + WITHOUT_FACTS],
        # an unpacked bundle has no index to hold facts
        *[("huggingface", *zip_and_line) for zip_and_line in UNREADABLE],
    ],
)
def test_a_zip_that_is_no_release_is_one_line(layout, make, line, registry, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError, match=line) as error:
        publish(str(path), str(registry), layout=layout)
    assert "\n" not in str(error.value)
    assert not registry.exists() or not files_of(registry)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layout": "gitlab"}, "--layout must be one of folder, github, huggingface, got gitlab"),
        ({"sign": True}, "--sign needs a value; write one after it"),
        (
            {"base_url": "example.org"},
            "--base_url must start with http:// or https://, got example.org",
        ),
        ({"layout": "huggingface", "sign": "key.pem"}, "--layout huggingface holds no zips; omit --sign and"),
        (
            {"layout": "github", "registry": "s3://bucket"},
            "--layout github writes a tree to upload, so --registry must be a folder, got s3://bucket",
        ),
        ({"registry": "http://localhost/"}, "http://localhost/: web servers cannot be written to;"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(options, line, registry, tmp_path):
    path = write_zip(tmp_path, "lung_lobes", "0.1.0")
    with pytest.raises(UserError) as error:
        publish(str(path), **({"registry": str(registry)} | options))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert not registry.exists()


@pytest.mark.parametrize("layout", ["folder", "github", "huggingface"])
def test_a_folder_without_permission_is_one_line(layout, tmp_path):
    path = write_zip(tmp_path / "zips", "lung_lobes", "0.1.0")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)  # below, the user is another one

    def run() -> None:
        if os.getuid() == 0:
            os.setuid(65534)  # the administrator may write everywhere
        publish(str(path), str(locked), layout=layout)

    status, message = refusal(run)
    assert status == 0
    assert re.fullmatch(
        rf"{locked}\S*: cannot be written: Permission denied; check the free space and permissions", message
    )
    assert list(locked.iterdir()) == []


def test_a_mistake_at_the_keyboard_is_one_line_without_a_traceback(tmp_path):
    # as python -m tools does, which loads all its commands
    program = (
        "from tools.publish import publish; from volseg.console.fire_commands import run; "
        "run({'publish': publish}, 'tools')"
    )
    command = [sys.executable, "-c", program, "publish", "none.zip", "--registry", str(tmp_path / "registry")]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1].startswith("error: none.zip: no such file;")
    assert "Traceback" not in run.stderr


class TestSigned:
    @pytest.fixture(scope="class")
    def keys(self, tmp_path_factory):
        pytest.importorskip("model_signing", reason="model-signing is not installed")
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        folder = tmp_path_factory.mktemp("keys")
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        (folder / "private.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "public.pem").write_bytes(
            key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return folder

    def test_the_signature_lies_beside_the_zip(self, keys, registry, tmp_path):
        publish(str(write_zip(tmp_path, "lung_lobes", "0.1.0")), str(registry), sign=str(keys / "private.pem"))
        (entry,) = index_of(registry).values()
        assert entry["signature"] == "lung_lobes_v0.1.0.zip.sig"
        signature = (registry / entry["signature"]).read_bytes()
        check_signature(registry / entry["source"], signature, keys / "public.pem")
        assert base64.b64decode(json.loads(signature)["dsseEnvelope"]["signatures"][0]["sig"])

    def test_a_version_that_was_released_unsigned_stays_so(self, keys, registry, tmp_path):
        path = write_zip(tmp_path, "lung_lobes", "0.1.0")
        publish(str(path), str(registry))
        before = files_of(registry)
        with pytest.raises(UserError, match=r"lung_lobes_v0\.1\.0 is already released without a signature; omit"):
            publish(str(path), str(registry), sign=str(keys / "private.pem"))
        assert files_of(registry) == before

    def test_a_signed_version_stays_as_it_is_when_published_again(self, keys, registry, tmp_path):
        path = write_zip(tmp_path, "lung_lobes", "0.1.0")
        publish(str(path), str(registry), sign=str(keys / "private.pem"))
        before = files_of(registry)
        publish(str(path), str(registry), sign=str(keys / "private.pem"))
        publish(str(path), str(registry))
        assert files_of(registry) == before

    def test_the_index_is_signed_too_and_never_changes_without(self, keys, registry, tmp_path):
        publish(str(write_zip(tmp_path, "lung_lobes", "0.1.0")), str(registry), sign=str(keys / "private.pem"))
        before = files_of(registry)
        newer = str(write_zip(tmp_path, "lung_lobes", "0.2.0"))
        with pytest.raises(UserError, match=r"registry: its index is signed; add --sign, or users"):
            publish(newer, str(registry))
        assert files_of(registry) == before
        publish(newer, str(registry), sign=str(keys / "private.pem"))
        assert list(index_of(registry)) == ["lung_lobes_v0.1.0", "lung_lobes_v0.2.0"]
        assert [entry.release.version for entry in read_index(locate(registry), keys / "public.pem")] == [
            "0.1.0",
            "0.2.0",
        ]
        (registry / "model_info.json").write_bytes(before["model_info.json"])
        with pytest.raises(UserError, match=r"model_info\.json: not signed by the holder of .*public\.pem"):
            read_index(locate(registry), keys / "public.pem")
        with pytest.raises(UserError, match=r"registry: its index is signed; add --sign"):  # which would complete it
            publish(newer, str(registry))

    @pytest.mark.parametrize("key", ["public.pem", "none.pem", "text.pem"])
    def test_a_key_that_cannot_sign_is_one_line(self, keys, key, registry, tmp_path):
        (keys / "text.pem").write_text("no key")
        path = write_zip(tmp_path, "lung_lobes", "0.1.0")
        with pytest.raises(UserError, match=rf"{key}: cannot be used as a private key: ") as error:
            publish(str(path), str(registry), sign=str(keys / key))
        assert "\n" not in str(error.value)
        assert not registry.exists()


class TestGithub:
    def test_the_assets_are_a_registry_and_the_index_beside_them_names_the_newest(self, registry, tmp_path):
        base_url = "https://github.com/owner/repo/releases/download/bundles"
        for name, version in [("lung_lobes", "0.10.0"), ("lung_lobes", "0.9.0"), ("prostate", "0.1.0")]:
            publish(str(write_zip(tmp_path, name, version)), str(registry), layout="github", base_url=base_url)
        assert list(index_of(registry / "release")) == ["lung_lobes_v0.9.0", "lung_lobes_v0.10.0", "prostate_v0.1.0"]
        newest = index_of(registry / "models")
        assert list(newest) == ["lung_lobes_v0.10.0", "prostate_v0.1.0"]
        assert newest["lung_lobes_v0.10.0"] == index_of(registry / "release")["lung_lobes_v0.10.0"]
        assert newest["prostate_v0.1.0"]["source"] == f"{base_url}/prostate_v0.1.0.zip"
        assert files_of(registry / "models").keys() == {"model_info.json"}

    def test_publishers_at_once_lose_nothing_there_either(self, registry, tmp_path):
        zips = [write_zip(tmp_path, f"bundle_{i}", "0.1.0") for i in range(4)]
        run = [fork(lambda path=path: publish(str(path), str(registry), layout="github")) for path in zips]
        assert [ended(process) for process in run] == [0] * 4
        assert list(index_of(registry / "models")) == [path.stem for path in zips]


class TestHuggingface:
    def test_a_newer_version_takes_the_place_of_the_older_one(self, registry, tmp_path, capsys):
        old = bundle_contents("lung_lobes", "0.1.0") | {"docs/old.md": b"Old."}
        publish(str(write_zip(tmp_path, "lung_lobes", "0.1.0", old)), str(registry), layout="huggingface")
        assert (registry / "lung_lobes" / "docs" / "old.md").exists()
        new = bundle_contents("lung_lobes", "0.2.0")
        publish(str(write_zip(tmp_path, "lung_lobes", "0.2.0", new)), str(registry), layout="huggingface")
        files = files_of(registry / "lung_lobes")
        assert files.pop("manifest.json")
        assert files.pop("README.md")
        assert files == new
        assert shlex.split(capsys.readouterr().out.splitlines()[-1]) == [
            "python",
            "-c",
            "from huggingface_hub import HfApi; hub = HfApi(); "
            "hub.create_repo('OWNER/lung_lobes', private=True, exist_ok=True); "
            f"hub.upload_folder(repo_id='OWNER/lung_lobes', folder_path='{registry}/lung_lobes', delete_patterns='*'); "
            "hub.create_tag('OWNER/lung_lobes', tag='0.2.0', exist_ok=True)",
        ]

    @pytest.mark.parametrize("file", ["lung_lobes/configs/train.json", "lung_lobes/models/model.pt"])
    def test_a_folder_with_files_of_others_is_left_alone(self, file, registry, tmp_path):
        path = write_zip(tmp_path, "lung_lobes", "0.1.0")
        if file.endswith("model.pt"):
            publish(str(path), str(registry), layout="huggingface")
        (registry / file).parent.mkdir(parents=True, exist_ok=True)
        (registry / file).write_text("mine")
        with pytest.raises(UserError, match="lung_lobes: is not an unchanged unpacked bundle and will not be replaced"):
            publish(str(path), str(registry), layout="huggingface")
        assert (registry / file).read_text() == "mine"
