# SPDX-License-Identifier: Apache-2.0
"""Tests of reading from folders, URLs, and web servers that misbehave."""

from __future__ import annotations

import os
import socket

import pytest
import requests

from tests.volseg.registry.misbehaving_server import DRIP_S
from volseg.errors import UserError
from volseg.registry import location as module
from volseg.registry.location import ATTEMPTS, BLOCK_BYTES, locate

DATA = bytes(range(256)) * 2000
assert len(DATA) > 3 * BLOCK_BYTES


@pytest.fixture
def file(registry):
    (registry / "a.zip").write_bytes(DATA)
    return "/a.zip"


def assembled(blocks, start=0):
    """What blocks give, put at their offsets behind what is there already."""
    content = bytearray(DATA[:start])
    for offset, block in blocks:
        assert offset in (0, len(content))
        content[offset:] = block
    return bytes(content)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize("start", [0, 1, BLOCK_BYTES, len(DATA) - 1, len(DATA)])
def test_folder_and_url_of_a_folder_give_the_same(registry, server, start):
    for name in (registry, str(registry), f"{registry}/", registry.as_uri(), server.url, f"{server.url}/"):
        assert assembled(locate(name).blocks("a.zip", start), start) == DATA


@pytest.mark.usefixtures("file")
def test_names_are_those_of_files_for_people(registry, server):
    assert locate(registry.as_uri()).path("a.zip") == f"{registry}/a.zip"
    assert locate(f"{server.url}/").path("a.zip") == f"{server.url}/a.zip"


def test_relative_folder(registry, monkeypatch):
    (registry / "a.zip").write_bytes(DATA)
    monkeypatch.chdir(registry.parent)
    assert locate("registry").read("a.zip") == DATA


def test_url_of_a_folder_whose_name_has_a_space(tmp_path):
    folder = tmp_path / "our registry"
    folder.mkdir()
    (folder / "a.zip").write_bytes(b"zip")
    assert "%20" in folder.as_uri()
    assert locate(folder.as_uri()).read("a.zip") == b"zip"


def test_memory_stands_for_any_storage_that_fsspec_knows():
    import fsspec

    with fsspec.open("memory://bucket/registry/a.zip", "wb") as opened:
        opened.write(DATA)
    location = locate("memory://bucket/registry")
    assert assembled(location.blocks("a.zip", 1000), 1000) == DATA
    with pytest.raises(FileNotFoundError):
        location.read("b.zip")


def test_only_the_rest_is_asked_for(server, file):
    assert assembled(locate(server.url).blocks("a.zip", 1000), 1000) == DATA
    assert server.ranges(file) == ["bytes=1000-"]


def test_server_without_ranges_begins_anew(server, file):
    server.knows_ranges = False
    blocks = list(locate(server.url).blocks("a.zip", 1000))
    assert blocks[0][0] == 0
    assert b"".join(block for _, block in blocks) == DATA


def test_start_behind_the_end_begins_anew(server, file):
    assert next(iter(locate(server.url).blocks("a.zip", len(DATA) + 5)))[0] == 0
    assert server.ranges(file) == [f"bytes={len(DATA) + 5}-", None]


def test_busy_server_is_asked_again(server, file):
    server.busy = ATTEMPTS - 1
    assert locate(server.url).read("a.zip") == DATA
    assert len(server.requests) == ATTEMPTS


def test_server_that_stays_busy(server, file):
    server.busy = 1000
    with pytest.raises(UserError, match=r"a.zip: cannot be reached: 503 Service Unavailable; check the URL"):
        locate(server.url).read("a.zip")
    assert len(server.requests) == ATTEMPTS


def test_broken_connection_goes_on_where_it_broke(server, file):
    server.breaks, server.break_after = 2 * ATTEMPTS, 50_000
    assert locate(server.url).read("a.zip") == DATA
    offsets = [int(header[6:-1]) for header in server.ranges(file)[1:]]
    assert len(offsets) == 2 * ATTEMPTS  # more than the attempts: each came further
    assert offsets == sorted(set(offsets))


def test_server_without_ranges_that_breaks_always_is_given_up(server, file):
    server.knows_ranges = False
    server.breaks, server.break_after = 1000, 100_000
    with pytest.raises(UserError, match=r"cannot be reached: IncompleteRead"):
        locate(server.url).read("a.zip")
    assert len(server.requests) <= 2 * ATTEMPTS


def test_server_without_ranges_that_breaks_once(server, file):
    server.knows_ranges = False
    server.breaks, server.break_after = 1, 100_000
    assert locate(server.url).read("a.zip") == DATA


@pytest.mark.parametrize(("status", "reason"), [(401, "Unauthorized"), (403, "Forbidden"), (400, "Bad Request")])
def test_refusal_is_final(server, file, status, reason):
    server.status[file] = status
    with pytest.raises(UserError, match=f"{server.url}/a.zip: was refused: {status} {reason}; check the URL"):
        locate(server.url).read("a.zip")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_missing_file(server, file, status):
    server.status[file] = status
    with pytest.raises(FileNotFoundError):
        locate(server.url).read("a.zip")


def test_range_that_is_refused_from_the_beginning_ends(server, file):
    server.status[file] = 416
    with pytest.raises(UserError, match=r"was refused: 416"):
        list(locate(server.url).blocks("a.zip", 10))


@pytest.mark.parametrize("dripped", ["body", "headers"])
def test_server_that_drips_is_cut_off(server, file, monkeypatch, dripped):
    """Every byte comes within the time limit of a read, but a block of them does not."""
    monkeypatch.setattr(module, "TIMEOUT_S", 6 * DRIP_S)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.drips_after, server.drips_headers = 0, dripped == "headers"
    with pytest.raises(UserError, match=r"a\.zip: cannot be reached: fewer than 16384 bytes came in 0\.\d+ s; check"):
        locate(server.url).read("a.zip")
    server.drips_after, server.drips_headers = None, False
    assert locate(server.url).read("a.zip") == DATA


def test_server_that_drips_for_a_while_is_asked_for_the_rest(server, file, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 6 * DRIP_S)
    server.drips_after = len(DATA) // 2
    assert locate(server.url).read("a.zip") == DATA
    assert server.ranges(file)[1] == f"bytes={len(DATA) // 2 // BLOCK_BYTES * BLOCK_BYTES}-"


@pytest.mark.parametrize("content_range", ["", "bytes 0-99/512000", "bytes 1001-511999/512000", "items 1000-1/2"])
def test_wrong_part_is_not_taken_for_the_rest(server, file, content_range):
    server.content_range = content_range
    blocks = list(locate(server.url).blocks("a.zip", 1000))
    assert blocks[0][0] == 0
    assert b"".join(block for _, block in blocks) == DATA
    assert server.ranges(file) == ["bytes=1000-", None]


def test_part_in_place_of_the_whole_is_refused(server, file):
    """As a server may do to which a proxy passes on a range of its own."""
    location = locate(server.url)
    location.session.headers["Range"] = "bytes=1000-"
    with pytest.raises(UserError, match=r"a\.zip: sends the part 'bytes 1000-511999/512000' of a file asked for whole"):
        location.read("a.zip")


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("etags", [('"1"', '"2"'), ('W/"1"', 'W/"2"'), ('"1"', "")])
def test_file_that_changes_between_two_parts_is_begun_anew(server, file, heeds_if_range, etags):
    new = bytes(reversed(DATA))
    server.breaks, server.break_after = 1, 100_000
    server.etag, server.heeds_if_range = etags[0], heeds_if_range
    server.changes[file] = (new, etags[1])
    assert locate(server.url).read("a.zip") == new


def test_file_that_stays_goes_on_where_it_broke(server, file):
    server.breaks, server.break_after = 1, 100_000
    server.etag = '"1"'
    assert locate(server.url).read("a.zip") == DATA
    assert server.ranges(file) == [None, f"bytes={100_000 // BLOCK_BYTES * BLOCK_BYTES}-"]


def test_redirect_on_the_same_server_is_followed(server, file):
    server.redirects["/b.zip"] = file
    assert locate(server.url).read("b.zip") == DATA


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a.zip", "file:///etc/passwd", "data:,x"])
def test_redirect_to_another_scheme_is_refused(server, file, target):
    server.redirects[file] = target
    scheme = target.partition(":")[0]
    with pytest.raises(UserError, match=rf"a\.zip: redirects from http to {scheme}, '{target}', which is not followed"):
        locate(server.url).read("a.zip")
    assert len(server.requests) == 1


@pytest.mark.parametrize(("scheme", "target", "is_safe"), [("http", "https", True), ("https", "http", False)])
def test_redirect_to_encryption_is_followed_but_not_back(scheme, target, is_safe):
    answer = requests.Response()
    answer.status_code, answer.url = 302, f"{scheme}://example.org/a"
    answer.headers["Location"] = f"{target}://example.org/b"
    session = locate("http://example.org").session
    if is_safe:
        assert session.get_redirect_target(answer) == "https://example.org/b"
    else:
        with pytest.raises(UserError, match=r"redirects from https to http"):
            session.get_redirect_target(answer)


def test_port_that_nobody_listens_on():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError) as error:
        locate(f"http://127.0.0.1:{port}").read("a")
    message = str(error.value)
    assert message.startswith(f"http://127.0.0.1:{port}/a: cannot be reached: ")
    assert "Connection refused; check the URL and the network" in message
    assert "HTTPConnection" not in message


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a b/", "https://127.0.0.1:99999"])
def test_url_that_cannot_be_right_is_not_tried_again(url, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(UserError, match=r"cannot be reached: .+; check the URL"):
        locate(url).read("a")


def test_server_that_never_stops_sending_an_index(server, registry, monkeypatch):
    monkeypatch.setattr(module, "READ_LIMIT_BYTES", 1000)
    (registry / "index").write_bytes(bytes(2000))
    for location in (locate(server.url), locate(registry)):
        with pytest.raises(UserError, match=r"index: is larger than 1000 bytes"):
            location.read("index")


@pytest.mark.parametrize("name", ["nowhere", "file:///nowhere/at/all", ""])
def test_missing_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(UserError, match=r"no such folder"):
            locate(name)
    with pytest.raises(FileNotFoundError):
        locate(tmp_path).read("a")


@pytest.mark.parametrize("name", ["nonsense://a/b", "what ever://x"])
def test_unknown_kind_of_url(name):
    with pytest.raises(UserError, match=r"cannot be opened|no such folder"):
        locate(name)


def test_file_that_cannot_be_read(registry):
    (registry / "a").mkdir()
    with pytest.raises(UserError, match=r"registry/a: cannot be read: Is a directory"):
        locate(registry).read("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(registry):
    (registry / "a").write_bytes(b"x")
    (registry / "a").chmod(0)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied"):
        locate(registry).read("a")
