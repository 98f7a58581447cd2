# SPDX-License-Identifier: Apache-2.0
"""Tests of the table of overlaps."""

from __future__ import annotations

from collections import Counter

import h5py
import numpy as np
import pytest

from volseg.errors import UserError
from volseg.instances import overlap_table as module
from volseg.instances.overlap_table import OverlapTable, foreground_overlap, overlap_table

TRUTH = np.array([[[1, 1, 0, 7], [1, 7, 7, 7]], [[1, 0, 0, 0], [0, 0, 0, 3]]])
PREDICTION = np.array([[[5, 5, 5, 0], [2, 2, 2, 2]], [[0, 0, 9, 0], [0, 0, 0, 0]]])


def as_lists(table: OverlapTable) -> dict[str, list]:
    return {name: getattr(table, name).tolist() for name in table.__dataclass_fields__}


def counted_one_by_one(prediction: np.ndarray, truth: np.ndarray) -> dict[str, list]:
    predictions, truths = prediction.ravel().tolist(), truth.ravel().tolist()
    sizes = [Counter(filter(None, ids)) for ids in (predictions, truths)]
    (prediction_ids, prediction_sizes), (truth_ids, truth_sizes) = (zip(*sorted(c.items()), strict=True) for c in sizes)
    pairs = sorted(Counter((p, t) for p, t in zip(predictions, truths, strict=True) if p and t).items())
    return {
        "prediction_ids": list(prediction_ids),
        "prediction_sizes": list(prediction_sizes),
        "truth_ids": list(truth_ids),
        "truth_sizes": list(truth_sizes),
        "pair_predictions": [prediction_ids.index(p) for (p, _), _ in pairs],
        "pair_truths": [truth_ids.index(t) for (_, t), _ in pairs],
        "pair_voxels": [voxels for _, voxels in pairs],
    }


def random_ids(seed: int, highest: int, shape: tuple[int, ...] = (7, 5, 11)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # runs of equal ids along the last axis, as in label maps
    ids = rng.integers(0, highest + 1, (2, *shape[:-1], 4)).repeat(-(-shape[-1] // 4), axis=-1)[..., : shape[-1]]
    return ids[0], np.roll(ids[1], 1, axis=-1)


def test_literal_case():
    table = overlap_table(PREDICTION, TRUTH)
    assert as_lists(table) == {
        "prediction_ids": [2, 5, 9],
        "prediction_sizes": [4, 3, 1],
        "truth_ids": [1, 3, 7],
        "truth_sizes": [4, 1, 4],
        "pair_predictions": [0, 0, 1],  # 2 with 1, 2 with 7, 5 with 1
        "pair_truths": [0, 2, 0],
        "pair_voxels": [1, 3, 2],
    }
    np.testing.assert_array_equal(table.pair_ious(), [1 / 7, 3 / 5, 2 / 5])


def test_without_small_truth():
    table = overlap_table(PREDICTION, TRUTH).without_small_truth(4)
    assert table.truth_ids.tolist() == [1, 7]  # 4 voxels are not below 4
    assert table.pair_truths.tolist() == [0, 1, 0]
    assert table.prediction_sizes.tolist() == [4, 3, 1]
    assert overlap_table(TRUTH, PREDICTION).without_small_truth(4).pair_voxels.tolist() == [1, 3]


def test_foreground_overlap():
    # 6 voxels in both, 8 predicted, 9 true
    assert foreground_overlap(PREDICTION, TRUTH) == (6 / 11, 12 / 17)
    assert foreground_overlap(np.zeros_like(TRUTH), TRUTH) == (0, 0)
    assert np.isnan(foreground_overlap(np.zeros((2, 3, 4), int), np.zeros((2, 3, 4), int))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">u2", np.uint32, np.int64, np.uint64])
def test_does_not_depend_on_type_or_memory_order(dtype):
    prediction, truth = random_ids(0, 9)
    expected = counted_one_by_one(prediction, truth)
    assert as_lists(overlap_table(prediction.astype(dtype), truth.astype(np.uint8))) == expected
    assert as_lists(overlap_table(prediction.astype(dtype, order="F"), truth)) == expected
    assert as_lists(overlap_table(prediction[0], truth[0])) == counted_one_by_one(prediction[0], truth[0])


@pytest.mark.parametrize("scale", [1, 1000, 2**58])
@pytest.mark.parametrize(("piece", "pending"), [(1, 1), (13, 20), (64, 1 << 20)])
def test_any_ids_in_any_pieces(monkeypatch, scale, piece, pending):
    monkeypatch.setattr(module, "_PIECE_VOXELS", piece)
    monkeypatch.setattr(module, "_PENDING_PAIRS", pending)
    prediction, truth = random_ids(1, 20)
    prediction = prediction * scale
    assert as_lists(overlap_table(prediction, truth)) == counted_one_by_one(prediction, truth)


def test_mask():
    table = overlap_table(PREDICTION > 0, TRUTH > 0)
    assert (table.prediction_ids.tolist(), table.truth_sizes.tolist(), table.pair_voxels.tolist()) == ([1], [9], [6])


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4), (2, 3, 0)])
def test_no_instances(shape):
    assert as_lists(overlap_table(np.zeros(shape, int), np.zeros(shape, int))) == {
        name: [] for name in OverlapTable.__dataclass_fields__
    }


@pytest.mark.parametrize("block_voxels", [1, 60, 200, 1 << 25])
def test_chunks_are_read_once(monkeypatch, tmp_path, block_voxels):
    monkeypatch.setattr(module, "_BLOCK_VOXELS", block_voxels)
    prediction, truth = random_ids(2, 30)
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        stored = file.create_dataset("prediction", data=prediction, chunks=(3, 2, 4))
        recorder = Recorder(stored)
        assert as_lists(overlap_table(recorder, truth)) == counted_one_by_one(prediction, truth)
    chunks_read = Counter(
        (z, y)
        for planes, rows in recorder.keys
        for z in range(planes.start // 3, -(-min(planes.stop, 7) // 3))
        for y in range(rows.start // 2, -(-min(rows.stop, 5) // 2))
    )
    assert chunks_read == {(z, y): 1 for z in range(3) for y in range(3)}
    # No block is larger than the limit, or than the chunks along a row where these are larger.
    assert max(recorder.voxels) <= max(block_voxels, 3 * 2 * 11)


class Recorder:
    """A stored array that notes what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, array.chunks
        self.keys, self.voxels = [], []

    def __getitem__(self, key):
        self.keys.append(key)
        self.voxels.append(self.array[key].size)
        return self.array[key]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 3, 4), np.float32), TRUTH, r"prediction must hold integer ids, got float32"),
        (PREDICTION, TRUTH[:, :, :3], r", got \(2, 2, 4\) and \(2, 2, 3\)"),
        (PREDICTION.ravel(), TRUTH.ravel(), r", got \(16,\) and \(16,\)"),
        (PREDICTION, TRUTH - 1, r"truth must hold ids from 0 to 2\*\*63 - 1, got -1"),
        (PREDICTION, TRUTH.astype(np.uint64) + np.uint64(2**63), r", got 9223372036854775815"),
    ],
)
def test_errors(prediction, truth, message):
    with pytest.raises(UserError, match=message):
        overlap_table(prediction, truth)
