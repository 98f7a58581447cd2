# SPDX-License-Identifier: Apache-2.0
"""Tests of weights files and the record beside them."""

from __future__ import annotations

import hashlib
import json
import resource

import pytest
import torch
from torch import nn

from volseg.errors import UserError
from volseg.weights import load_weights, recorded_values, save_weights


def network(seed: int, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, channels, 1), nn.BatchNorm3d(channels))


def test_weights_come_back(tmp_path):
    path, saved, loaded = tmp_path / "sub" / "model.pt", network(0), network(1)
    saved(torch.randn(2, 1, 3, 4, 5))  # statistics other than the initial ones
    save_weights(path, saved, {"spatial_size": [8, 16, 24]})
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.pt"]
    load_weights(path, loaded)
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert set(torch.load(path, weights_only=True)) == set(saved.state_dict())


def test_half_the_bytes(tmp_path):
    saved, loaded = network(0), network(1)
    save_weights(tmp_path / "model.pt", saved, {}, torch.float16)
    dtypes = {k: v.dtype for k, v in torch.load(tmp_path / "model.pt", weights_only=True).items()}
    assert dtypes["0.weight"] == torch.float16 and dtypes["1.num_batches_tracked"] == torch.int64
    load_weights(tmp_path / "model.pt", loaded)
    assert loaded[0].weight.dtype == torch.float32
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=1e-3, atol=0)


def test_record(tmp_path):
    path, paper = tmp_path / "model.pt", {"spatial_size": [512, 512, 64], "norm": None}
    assert recorded_values(path, paper) == paper
    save_weights(path, network(0), {"spatial_size": [8, 16, 24], "norm": "instance", "seed": 0})
    assert recorded_values(str(path), paper) == {"spatial_size": [8, 16, 24], "norm": "instance"}
    assert recorded_values(path, {**paper, "max_epochs": 1}, ["norm"]) == {"norm": "instance"}
    with pytest.raises(UserError, match=r"model\.json: lacks epoch; are these the weights of another bundle\?"):
        recorded_values(path, {"norm": None, "epoch": 0})
    # records of the first release do not have it
    assert recorded_values(path, {"norm": None, "outline_threshold": 0.0}) == {
        "norm": "instance",
        "outline_threshold": 0.0,
    }


def test_the_same_weights_make_the_same_bytes(tmp_path):
    paths = [tmp_path / "model.pt", tmp_path / "other" / "best.pt"]
    for path in paths:
        save_weights(path, network(0), {"epoch": 1})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    digest = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert json.loads(paths[1].with_suffix(".json").read_text()) == {"epoch": 1, "sha256": digest}


def test_weights_of_which_bytes_are_damaged(tmp_path):
    path, target = tmp_path / "model.pt", nn.Linear(1000, 1)
    save_weights(path, nn.Linear(1000, 1), {"epoch": 1})
    content = bytearray(path.read_bytes())
    content[2000:2064] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.pt: is damaged or was replaced: its SHA-256 is .*model\.json is"
    ) as error:
        load_weights(path, target)
    assert "\n" not in str(error.value)
    path.with_suffix(".json").write_text('{"epoch": 1}')  # an older record, which cannot tell
    load_weights(path, target)
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(UserError, match=r"model\.json: is no record of .*model\.pt: "):
        load_weights(path, target)


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff"])
def test_record_that_is_none(tmp_path, content):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json: is no record of .*model\.pt: .*; delete it or train again"):
        recorded_values(tmp_path / "model.pt", {"spatial_size": None})


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"model\.pt: no weights there; train first"):
        load_weights(tmp_path / "model.pt", network(0))


def test_weights_that_do_not_fit(tmp_path):
    path, target = tmp_path / "model.pt", network(0, channels=4)
    save_weights(path, network(0), {})
    with pytest.raises(UserError, match=r"model\.pt: no weights of Sequential as configured: .*size mismatch"):
        load_weights(path, target)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "json", "no state dict"])
def test_damaged_weights(tmp_path, damage):
    path = tmp_path / "model.pt"
    save_weights(path, network(0), {})
    if damage == "no state dict":
        torch.save([1, 2], path)
    else:
        whole = path.read_bytes()
        content = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"weights", "json": json.dumps({}).encode()}
        path.write_bytes(content[damage])
    expected = "no weights of Sequential" if damage == "no state dict" else "must hold weights as torch.save writes"
    with pytest.raises(UserError, match=rf"model\.pt: {expected}"):
        load_weights(path, network(0))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_of_a_training_that_diverged(tmp_path, value):
    diverged = network(0)
    with torch.no_grad():
        diverged[0].weight.view(-1)[1] = value
    save_weights(tmp_path / "model.pt", diverged, {})
    with pytest.raises(UserError, match=r"model\.pt: weights must be finite, got NaN or infinity in 0\.weight"):
        load_weights(tmp_path / "model.pt", network(0))


def test_disk_that_is_full(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(UserError, match=r"model\.pt: cannot be written: "):
            save_weights(tmp_path / "model.pt", nn.Linear(100, 100), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []
