# SPDX-License-Identifier: Apache-2.0
"""A network through OpenVINO, on the CPU."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.runtime.network_state import agrees, digest
from volseg.storage.files import replacement
from volseg.storage.model_cache import keep_newest

__all__ = ["OpenVINONetwork"]

COMPILED_SHAPES, CACHE_ENTRIES = 2, 8
# Results in float32 differ from PyTorch's by about 1e-6; those of a wrong conversion by far more.
CHECK_TOLERANCE = 1e-3


class OpenVINONetwork:
    """A network with the weights that it has now, computed in ``"bf16"`` or ``"f32"``; ImportError without the package.

    Shapes are compiled one by one, in 0.1 s: with free sizes PDV-Net at 512 x 512 x 64 needed 0.6 GB and a third of the
    time more. What is worth keeping on disk is the converted network.
    """

    def __init__(self, network: nn.Module, cache_dir: Path, precision: str) -> None:
        self._ov = _import_openvino()
        self._core = self._ov.Core()
        self._network, self._folder, self._precision = network, cache_dir / "openvino", precision
        self._digest = digest(network, self._ov.__version__)
        self._models: dict[tuple[int, ...], Any] = {}
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(self._model(shape), shape, self._precision)
            if len(self._compiled) > COMPILED_SHAPES:
                del self._compiled[next(iter(self._compiled))]
        return self._infer(self._compiled[shape], x)

    def _infer(self, compiled: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().contiguous()  # OpenVINO does not keep alive what it shares: a window of a volume is copied here
        y = torch.empty(tuple(compiled.output(0).shape))
        request = compiled.create_infer_request()  # a kept one would keep its output alive
        request.set_input_tensor(0, self._ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(0, self._ov.Tensor(y.numpy(), shared_memory=True))
        request.infer()
        return y

    def _compile(self, model: Any, shape: tuple[int, ...], precision: str) -> Any:
        model = model.clone()
        model.reshape(list(shape))
        # PyTorch's thread count honours OMP_NUM_THREADS and torch.set_num_threads
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return self._core.compile_model(model, "CPU", config)

    def _model(self, shape: tuple[int, ...]) -> Any:
        """The network in OpenVINO's form, with free sizes, from memory, from disk, or converted.

        Its numbers are compared with the network's at a shape that it was not traced with.
        """
        example, check = _example_shapes(shape)
        if example in self._models:
            return self._models[example]
        noise = torch.randn(check, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                expected = self._network(noise)
        except (ValueError, RuntimeError):  # the network takes no other size, so that there is nothing to compare
            return self._convert(shape)
        folder = self._folder / hashlib.sha256(f"{self._digest} {example}".encode()).hexdigest()
        try:
            os.utime(folder)  # the oldest are removed first
            model = self._core.read_model(folder / "model.xml")
            is_right = self._agrees(model, noise, expected)
        except (OSError, RuntimeError):  # absent, cut short by a full disk, or damaged though it can be read
            is_right = False
        if not is_right:
            model = self._convert(example)
            if not self._agrees(model, noise, expected):
                raise RuntimeError(f"the converted {type(self._network).__name__} gives other numbers at {check}")
            self._store(folder, model)
        self._models[example] = model
        return model

    def _convert(self, shape: tuple[int, ...]) -> Any:
        example = torch.zeros(shape)
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            # sizes that Python code checked become constants of the trace; _agrees finds out if that matters
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._network, example, check_trace=False)
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

        # openvino.convert_model does the same and, when it fails, leaves the root logger deaf to warnings
        frontend = self._ov.frontend.FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # used until the model is complete
        model = frontend.convert(frontend.load(decoder))
        if len(model.outputs) != 1:
            raise RuntimeError(f"{type(self._network).__name__} returns {len(model.outputs)} tensors")
        return model

    def _agrees(self, model: Any, noise: torch.Tensor, expected: torch.Tensor) -> bool:
        compiled = self._compile(model, tuple(noise.shape), "f32")
        return agrees(self._infer(compiled, noise), expected, CHECK_TOLERANCE)

    def _store(self, folder: Path, model: Any) -> None:
        with suppress(OSError, RuntimeError):  # then it is converted again at the next start
            with replacement(folder) as new:
                self._ov.save_model(model, new / "model.xml", compress_to_fp16=False)
            keep_newest(self._folder, CACHE_ENTRIES)


def _import_openvino() -> Any:
    """The package, imported so that it does not call home.

    It reports each import to Google Analytics, without asking, if the package ``openvino_telemetry`` is there, and has
    a stub for it if not. A program that reads patients' images takes the stub.
    """
    hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ImportError(f"{error}. Install it with: pip install openvino") from error
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]


def _example_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two small shapes that a network treats like the given one: to trace with and to check the result with.

    Tracing at full size would need the network's memory in PyTorch. The remainders modulo 32 are kept, because code
    that pads or crops looks at whether sizes are even at each of (up to) five halvings.
    """
    edges = [[min(size, size % 32 + edge) for size in shape[2:]] for edge in (32, 64)]
    one, other = ([edges[(axis + i) % 2][axis] for axis in range(len(shape) - 2)] for i in (0, 1))
    return (1, *shape[1:2], *one), (2, *shape[1:2], *other)
