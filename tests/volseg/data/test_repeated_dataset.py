# SPDX-License-Identifier: Apache-2.0
"""Cases that take turns."""

from __future__ import annotations

from torch.utils.data import DataLoader

from volseg.data.datasets import RepeatedDataset


def test_cases_take_turns_until_the_epoch_is_full():
    dataset = RepeatedDataset([1, 2, 3], lambda case: 10 * case, num_items=5)
    assert [dataset[i] for i in range(len(dataset))] == [10, 20, 30, 10, 20]


def test_an_epoch_may_be_shorter_than_the_cases():
    dataset = RepeatedDataset([1, 2, 3], lambda case: case, num_items=2)
    assert [batch.tolist() for batch in DataLoader(dataset, batch_size=2)] == [[1, 2]]
