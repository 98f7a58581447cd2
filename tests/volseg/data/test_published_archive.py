# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from volseg.data.published_archive import check_md5, unpack
from volseg.errors import UserError

WANTED = re.compile(r"(?:(?:top|other)/)?(?P<path>(?:deep/)?a\d\.raw)")
GOOD = {"top/a1.raw": b"one", "a2.raw": b"two", "top/deep/a3.raw": b"", "top/._a1.raw": b"mac", "run.sh": b"rm"}


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


MAKERS = {"zip": make_zip, "tar": make_tar}


def make(tmp_path: Path, kind: str, members: dict[str, bytes]) -> Path:
    return MAKERS[kind](tmp_path / f"x.{kind}", members)


def refused(words: str, archive: Path, folder: Path, max_file_bytes: int = 100) -> None:
    before = sorted(folder.parent.iterdir())
    with pytest.raises(UserError) as caught:
        unpack(archive, folder, WANTED, max_file_bytes)
    text = str(caught.value)
    assert words in text and text.startswith(str(archive)) and "\n" not in text and "; " in text
    assert sorted(folder.parent.iterdir()) == before  # nothing, half or whole


@pytest.mark.parametrize("kind", MAKERS)
def test_wanted_members_alone_land_on_disk(tmp_path: Path, kind: str):
    archive = make(tmp_path, kind, GOOD)
    leftover = tmp_path / ".out.0123456789ab.staging" / "new" / "a9.raw"  # of a run that was killed
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    (tmp_path / "out").mkdir()
    assert unpack(archive, tmp_path / "out", WANTED, 3) == tmp_path / "out"
    found = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*.raw")}
    assert found == {"out/a1.raw": b"one", "out/a2.raw": b"two", "out/deep/a3.raw": b""}
    assert not leftover.parent.parent.exists()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../a4.raw", "'../a4.raw' has a name that leads elsewhere"),
        ("top/../../a4.raw", "leads elsewhere"),
        ("..\\a4.raw", "leads elsewhere"),
        ("/tmp/a4.raw", "has an absolute name"),
        ("C:a4.raw", "has an absolute name"),
        ("../harmless.txt", "leads elsewhere"),  # not even wanted
        ("other/a1.raw", "holds a1.raw twice"),
        ("top/a5.raw", "is 101 bytes long, more than 100"),
    ],
)
def test_members_that_are_not_as_published(tmp_path: Path, kind: str, name: str, words: str):
    archive = make(tmp_path, kind, {**GOOD, name: b"x" * 101 if "a5" in name else b"x"})
    refused(words, archive, tmp_path / "out")


def test_links_and_devices(tmp_path: Path):
    for kind, name in ((tarfile.SYMTYPE, "a4.raw"), (tarfile.LNKTYPE, "a4.raw"), (tarfile.FIFOTYPE, "pipe")):
        archive = tmp_path / "x.tar"
        with tarfile.open(archive, "w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info)
        refused("is a link or a device", archive, tmp_path / "out")
    info = zipfile.ZipInfo("a4.raw")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/hostname")
    refused("is a link or a device", tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_archives(tmp_path: Path, kind: str):
    archive = make(tmp_path, kind, {"a1.raw": bytes(range(256)) * 8, "a2.raw": b"2" * 500})
    content = archive.read_bytes()
    archive.write_bytes(content[: min(700, len(content) - 30)])
    refused("cannot be read", archive, tmp_path / "out", 4096)
    archive.write_bytes(b"<html>Not Found</html>")
    refused("cannot be read", archive, tmp_path / "out")
    make(tmp_path, kind, {"readme.txt": b""})
    refused("nothing to unpack", archive, tmp_path / "out")
    archive.unlink()
    refused("No such file", archive, tmp_path / "out")


def test_damaged_voxels_of_a_zip_leave_nothing(tmp_path: Path):
    archive = make_zip(tmp_path / "x.zip", {"a1.raw": b"first", "a2.raw": bytes(range(100))})
    content = bytearray(archive.read_bytes())
    place = content.index(b"a2.raw") + len("a2.raw") + 5
    content[place] ^= 0xFF
    archive.write_bytes(content)
    refused("cannot be read", archive, tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out: exists and will not be replaced; move it away or choose another name$"):
        unpack(make_zip(tmp_path / "x.zip", GOOD), tmp_path / "out", WANTED, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.zip"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_md5(tmp_path: Path):
    file = tmp_path / "x.zip"
    file.write_bytes(b"abc" * 10**6)  # longer than one chunk
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    check_md5(file, md5)
    other = "0" * 32
    with pytest.raises(UserError, match=rf"x\.zip: is not the published file: its MD5 is {md5}, must be {other}"):
        check_md5(file, other)
