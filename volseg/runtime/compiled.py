# SPDX-License-Identifier: Apache-2.0
"""A network through ``torch.compile``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

__all__ = ["CompilationError", "CompiledNetwork"]


class CompilationError(RuntimeError):
    """PyTorch, Python or this machine cannot compile the network: no C++ compiler, no Triton, an operator it lacks."""


class CompiledNetwork:
    """Evaluate a network as compiled by PyTorch's Inductor, from the weights that it has at the moment.

    What is compiled is kept on disk by Inductor; where ``TORCHINDUCTOR_CACHE_DIR`` does not say otherwise, in
    ``folder``. The variable is set for the whole process, as Inductor itself does with a folder below the temporary
    one, which a restart of the machine empties. A second start still traces the network, but does not compile it.

    Args:
        network: stays as it is.
        folder: see above; one that cannot be written is not used.

    Shapes:
        those of the network; sizes become free at the second one that is met.

    Raises:
        CompilationError: this Python cannot compile.
    """

    def __init__(self, network: nn.Module, folder: Path) -> None:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
        try:
            self._network = torch.compile(network)
        except RuntimeError as error:
            raise CompilationError(str(error)) from error

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output, without gradient.

        Raises:
            CompilationError: see there. What the network raises itself passes through.
        """
        try:
            with torch.no_grad():
                return self._network(x)
        except TorchDynamoException as error:
            raise CompilationError(str(error)) from error
