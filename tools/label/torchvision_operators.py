# SPDX-License-Identifier: Apache-2.0
"""Let torchvision be imported beside a build of PyTorch that its compiled operators were not made for.

The torchvision of package registries is compiled for PyTorch with CUDA. Beside the CPU build of PyTorch its library
cannot be loaded, and ``import torchvision`` then fails on operators that nobody declared. This module, which
``python -m tools label`` puts into its environment where that is so, declares them; to call them remains an
error. A ``.pth`` file starts it with the interpreter; it imports PyTorch no earlier than torchvision would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(MetaPathFinder):
    """Finds no module; declares the operators when torchvision is looked for."""

    libraries: list[object] = []  # noqa: RUF012  operators live as long as the library object

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not self.libraries:
            import torch  # noqa: PLC0415

            library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(operator)
            self.libraries.append(library)
        return None


def install() -> None:
    """Declare the operators before torchvision is imported, whenever that is."""
    sys.meta_path.insert(0, _BeforeTorchvision())
