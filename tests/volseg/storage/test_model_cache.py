# SPDX-License-Identifier: Apache-2.0
"""Where converted networks are kept."""

from __future__ import annotations

import os
from pathlib import Path

from volseg.storage.model_cache import keep_newest, model_cache


def test_folder_given_by_xdg_or_below_home(tmp_path, monkeypatch):
    assert model_cache(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache() == tmp_path / "volseg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert model_cache() == Path.home() / ".cache" / "volseg"


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age_s, name in ((30, "oldest"), (10, "newest.plan"), (20, "folder"), (40, "older_folder")):
        path = tmp_path / name
        path.mkdir() if "folder" in name else path.touch()
        os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    keep_newest(tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 4
    keep_newest(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "newest.plan"}
