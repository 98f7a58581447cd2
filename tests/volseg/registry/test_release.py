# SPDX-License-Identifier: Apache-2.0
"""Tests of names and versions."""

from __future__ import annotations

import pytest

from volseg.errors import UserError
from volseg.registry.release import Release


def test_versions_are_ordered_as_numbers():
    versions = ["0.10.0", "0.9.0", "1.0.0", "0.9.10", "0.9.9", "10.0.0"]
    ordered = sorted(versions, key=lambda version: Release("a", version).order)
    assert ordered == ["0.9.0", "0.9.9", "0.9.10", "0.10.0", "1.0.0", "10.0.0"]


@pytest.mark.parametrize("name", ["a", "vnet_prostate", "pdvnet_lung", "resunet_mitoem", "a1_2b"])
def test_key_is_read_as_it_is_written(name):
    release = Release(name, "0.10.2")
    assert release.key == f"{name}_v0.10.2"
    assert release.zip_name == f"{name}_v0.10.2.zip"
    assert Release.parse(release.key) == release


@pytest.mark.parametrize(
    "name",
    ["", "A", "1a", "a-b", "a__b", "_a", "a_", "a b", "a/b", "..", "a.b", "prostate_vnet", "a_v1", "a\n", "ä", "a\x1b"],
)
def test_forbidden_name(name):
    with pytest.raises(UserError, match=r"bundle names are lower-case words") as error:
        Release(name, "0.1.0")
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    "version",
    [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.-1",
        "1.0.0rc1",
        "1.0.0-rc.1",
        "v1.0.0",
        "1.0.0\n",
        "1.0.x",
        "١.0.0",
        "1!1.0.0",
    ],
)
def test_forbidden_version(version):
    with pytest.raises(UserError, match=r"the version of a must be three numbers"):
        Release("a", version)


@pytest.mark.parametrize("value", [1, None, ["a"]])
def test_what_json_may_hold_instead_of_text(value):
    with pytest.raises(UserError):
        Release(value, "0.1.0")
    with pytest.raises(UserError):
        Release("a", value)


@pytest.mark.parametrize("key", ["", "a", "a0.1.0", "_v0.1.0", "a_v", "a_v1"])
def test_key_that_is_none(key):
    with pytest.raises(UserError):
        Release.parse(key)
