# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from volseg.inferers.mirrored import MirroredInferer


@pytest.mark.parametrize(("axis", "expected"), [(0, [[2.5, 4.5, 6.5], [5.5, 7.5, 9.5]]), (2, [[2, 3, 4], [8, 9, 10]])])
def test_outputs_for_an_image_and_its_mirror_image_are_averaged(axis, expected):
    image = torch.arange(6.0).reshape(1, 1, 2, 1, 3)
    added = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).reshape(2, 1, 3)  # not symmetric
    found = MirroredInferer(axis)(image, lambda inputs: inputs + added)
    assert found[0, 0, :, 0].tolist() == expected


def test_a_network_that_keeps_symmetry_is_what_it_is_without():
    image = torch.rand(2, 1, 4, 3, 5)
    network = torch.nn.ReLU()
    torch.testing.assert_close(MirroredInferer()(image, network), network(image))
