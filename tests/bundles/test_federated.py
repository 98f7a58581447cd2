# SPDX-License-Identifier: Apache-2.0
"""Federated learning through MONAI's client: the server's weights are trained and scored, a client's own stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("federated_round.py")
# enough to learn something, and no more
LEARNING = {
    "pdvnet_lung": (3, {"warmup_iterations": 1}),
    "vnet_prostate": (6, {"learning_rate": 0.003}),
    "resunet_mitoem": (2, {"epoch_iterations": 6, "warmup_iterations": 1}),
}


@pytest.fixture(scope="module", params=LEARNING)
def bundle_name(request) -> str:
    return request.param


def test_two_rounds_with_two_clients(bundle, runner, tmp_path):
    epochs, options = LEARNING[bundle.name]
    cases = "{'training': 4, 'validation': 1, 'test': 1}"
    given = [
        *("--phantom_cases", cases, "--phantom_shape", list(bundle.small.phantom_shape), "--device", "cpu"),
        *bundle.network_overrides, *bundle.size_overrides, "--num_workers", 0,
        *(part for key, value in options.items() for part in (f"--{key}", value)),
    ]  # fmt: skip
    process = runner.process(SCRIPT, bundle.dir, tmp_path, epochs, *given)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    first, *later = result["metrics"]
    metric = "val_mean_dice" if bundle.name != "resunet_mitoem" else "val_ap75"
    assert all(0 <= client[metric] <= 1 for clients in (first, *later) for client in clients)
    # scored are the weights that were sent, whatever the client holds
    assert result["start_again"] == first
    assert result["losses"][1] < result["losses"][0]  # Dice of so short a training is chance
    assert len(set(result["rates"])) == 1
    for client in ("client0", "client1"):
        assert not (tmp_path / client / "models").exists()
        assert (tmp_path / client / "out" / "checkpoint.pt").read_bytes() == b"stale"
