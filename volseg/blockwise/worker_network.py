# SPDX-License-Identifier: Apache-2.0
"""A network that travels to workers as configuration and is built once in each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from monai.utils import instantiate
from torch import nn

from volseg.runtime.accelerate import accelerate
from volseg.weights import load_weights

__all__ = ["WorkerNetwork"]


@dataclass(frozen=True)
class WorkerNetwork:
    """What a worker needs to build a network; plain values, which any process that can import ``target`` can read.

    Attributes:
        target: dotted name of the network's class or of a function that makes it.
        arguments: of it, as JSON holds them.
        weights: file of its state dict, which every worker can read.
        device: ``"auto"`` is a worker's first visible GPU, the CPU where it has none.
        runtime: see :func:`volseg.runtime.accelerate.accelerate`.
        threads: of PyTorch and OpenVINO in one worker; None leaves them as the worker has them.
    """

    target: str
    weights: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = None

    @classmethod
    def of(cls, network: Callable[..., nn.Module], weights: str | Path, **others: Any) -> WorkerNetwork:
        """From what a config item with ``"_mode_": "callable"`` evaluates to.

        Args:
            network: class or function of a module, or a :func:`functools.partial` of one with named arguments.
            weights: file of the state dict.
            others: further attributes.
        """
        made = network if isinstance(network, partial) else partial(network)
        target: Any = made.func
        return cls(f"{target.__module__}.{target.__qualname__}", str(Path(weights).resolve()), made.keywords, **others)

    def check(self) -> None:
        """Build the network and load its weights, before hours of work.

        Raises:
            UserError: no weights, or those of another network.
        """
        self._network()

    def build(self) -> tuple[nn.Module, torch.device]:
        """The network in evaluation on its device, and the device; the same ones at every call in a process.

        Raises:
            UserError: no weights, or those of another network.
        """
        return _built(json.dumps(asdict(self), sort_keys=True))

    def parameters(self) -> dict[str, Any]:
        """What its outputs depend on: class, arguments, the weights' SHA-256 and the way it runs.

        Raises:
            UserError: no weights, or those of another network.
        """
        self.check()
        digest = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        arguments = dict(self.arguments)
        return {"network": self.target, "arguments": arguments, "weights_sha256": digest, "runtime": self.runtime}

    def _network(self) -> nn.Module:
        network: nn.Module = instantiate(self.target, "default", **self.arguments)
        load_weights(self.weights, network)
        return network.eval()

    def _accelerated(self) -> tuple[nn.Module, torch.device]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(automatic if self.device == "auto" else self.device)
        return accelerate(self._network(), device, self.runtime), device


@lru_cache(maxsize=1)
def _built(configuration: str) -> tuple[nn.Module, torch.device]:
    return WorkerNetwork(**json.loads(configuration))._accelerated()
