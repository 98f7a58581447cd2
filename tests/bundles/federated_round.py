# SPDX-License-Identifier: Apache-2.0
"""Two rounds of federated averaging between two clients, as a process of its own: MONAI's client changes what runs."""

from __future__ import annotations

import copy
import json
import sys
from ast import literal_eval
from pathlib import Path

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism

ROUNDS = 2


def value_of(text: str) -> object:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    """Arguments: bundle, scratch folder, epochs per round, overrides as ``--key value``. Prints the metrics as JSON."""
    bundle, scratch, epochs, *given = sys.argv[1:]
    overrides = {key.removeprefix("--"): value_of(text) for key, text in zip(given[::2], given[1::2], strict=True)}
    set_determinism(0)  # the networks' first weights
    clients = []
    for seed in (0, 1):
        folder = Path(scratch) / f"client{seed}"
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "checkpoint.pt").write_bytes(b"stale")  # of a training before
        own = {
            **overrides, "phantom_seed": seed, "phantom_dir": str(folder / "phantoms"),
            "output_dir": str(folder / "out"), "ckpt_dir": str(folder / "models"),
        }  # fmt: skip
        evaluation = {key: value for key, value in own.items() if key != "max_epochs"}
        client = MonaiAlgo(
            bundle, local_epochs=int(epochs), train_kwargs=own, eval_kwargs={**evaluation, "runtime": "eager"}
        )
        client.initialize({ExtraItems.CLIENT_NAME: f"client{seed}"})
        clients.append(client)
    weights = {key: value.clone() for key, value in clients[0].trainer.network.state_dict().items()}
    start = {key: value.clone() for key, value in weights.items()}

    def metrics(state: dict[str, torch.Tensor]) -> list[dict[str, float]]:
        return [dict(client.evaluate(ExchangeObject(weights=state)).metrics) for client in clients]

    batches = [next(iter(client.trainer.data_loader)) for client in clients]

    def loss(state: dict[str, torch.Tensor]) -> float:
        """On one batch of each client."""
        total = 0.0
        for client, batch in zip(clients, batches, strict=True):
            trainer = client.trainer
            network = copy.deepcopy(trainer.network).train()
            network.load_state_dict(state)
            with torch.no_grad():
                inputs, targets = trainer.prepare_batch(batch, trainer.state.device, False)
                total += float(trainer.loss_function(trainer.inferer(inputs, network), targets))
        return total

    found = [metrics(weights)]
    rates = []
    for _ in range(ROUNDS):
        changes = []
        for client in clients:
            client.train(ExchangeObject(weights=weights))
            changes.append(client.get_weights().weights)
            rates.append(client.trainer.optimizer.param_groups[0]["lr"])
        weights = {key: (value + sum(c[key] for c in changes) / len(changes)).to(value.dtype)
                   for key, value in weights.items()}  # fmt: skip
        found.append(metrics(weights))
    losses = [loss(start), loss(weights)]
    print(json.dumps({"metrics": found, "start_again": metrics(start), "rates": rates, "losses": losses}))


if __name__ == "__main__":
    main()
