# SPDX-License-Identifier: Apache-2.0
"""A network that travels to workers without its weights, and is completed once in each."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.console.option_checks import check_options
from volseg.errors import UserError
from volseg.handlers.training_identity import training_identity
from volseg.runtime.accelerate import accelerate
from volseg.weights import load_weights

__all__ = ["WorkerNetwork"]

# of this process, by their keys; one at most, as a network may fill the memory
_completed: dict[str, tuple[nn.Module, torch.device]] = {}


@dataclass(frozen=True)
class WorkerNetwork:
    """What a worker needs to run a network; can be pickled, wherever the network's class can be imported.

    Attributes:
        network: its layers, on PyTorch's device ``meta``; see :meth:`of`.
        weights: file of its state dict, which every worker can read.
        device: ``"auto"`` is a worker's first visible GPU, the CPU where it has none.
        runtime: see :func:`volseg.runtime.accelerate.accelerate`.
        threads: of PyTorch and OpenVINO in one worker; None leaves them as the worker has them.
    """

    network: nn.Module
    weights: str
    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = None

    @classmethod
    def of(cls, network: nn.Module, weights: str | Path, **others: Any) -> WorkerNetwork:
        """From a network as a config builds it; the weights that it has do not matter.

        Args:
            network: takes one channel of grey values.
            weights: file of the state dict.
            others: further attributes.

        Raises:
            UserError: the network has buffers that no file of weights holds.
        """
        lost = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
        if lost:
            raise UserError(f"{type(network).__name__}: buffers must be persistent, got {', '.join(sorted(lost))}")
        return cls(copy.deepcopy(network).to("meta"), str(Path(weights).resolve()), **others)

    @property
    def name(self) -> str:
        """Dotted name of the network's class."""
        return f"{type(self.network).__module__}.{type(self.network).__qualname__}"

    def check(self) -> None:
        """Load the weights, before hours of work.

        Raises:
            UserError: no weights, or those of another network, or no such kind of device.
        """
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise UserError(f"device must be auto, cpu, cuda or one such as cuda:0, got {self.device!r}") from error
        self._complete()

    def build(self) -> tuple[nn.Module, torch.device]:
        """The network in evaluation on its device, and the device; the same ones at every call in a process.

        Raises:
            UserError: no weights, or those of another network, or this worker lacks the device.
        """
        key = f"{self._identity()} {self.weights} {self.device} {self.runtime} {self.threads}"
        if key not in _completed:
            _completed.clear()
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            automatic = "cuda" if torch.cuda.is_available() else "cpu"
            device = torch.device(automatic if self.device == "auto" else self.device)
            check_options(device=device)
            _completed[key] = accelerate(self._complete(), device, self.runtime), device
        return _completed[key]

    def parameters(self) -> Mapping[str, Any]:
        """What its outputs depend on: class, layers, the weights' SHA-256 and the way it runs.

        Raises:
            UserError: no weights, or those of another network.
        """
        self.check()
        digest = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        return {
            "network": self.name,
            "layers_sha256": self._identity(),
            "weights_sha256": digest,
            "runtime": self.runtime,
        }

    def _identity(self) -> str:
        return training_identity({"network": self.network})

    def _complete(self) -> nn.Module:
        network = copy.deepcopy(self.network).to_empty(device="cpu")
        load_weights(self.weights, network)
        return network.eval()
