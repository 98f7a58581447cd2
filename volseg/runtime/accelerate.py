# SPDX-License-Identifier: Apache-2.0
"""How a network is made fast on the device at hand.

:func:`accelerate` wraps a network in a module with the same interface that decides, input by input, how to run it:
through OpenVINO, TensorRT or ``torch.compile``, in bfloat16, channels-last, or with CUDA's mixed precision. Training,
exports and whatever needs gradients go to the network itself.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import nn

from volseg.errors import UserError
from volseg.runtime import shared_dense_block
from volseg.runtime.linear_upsampling import double_linearly
from volseg.runtime.model_cache import keep_newest, model_cache
from volseg.runtime.network_state import digest, fingerprint
from volseg.runtime.shared_dense_block import share_dense_blocks

if TYPE_CHECKING:  # they import what a run without them does not need
    from volseg.runtime.compiled import CompiledNetwork
    from volseg.runtime.tensorrt import TensorRTNetwork

__all__ = ["MODES", "accelerate", "bfloat16_is_native"]

logger = logging.getLogger("volseg.runtime.accelerate")

MODES = ("auto", "eager", "channels_last", "bf16", "openvino", "compile", "cuda_amp", "tensorrt")
# Modes that run something derived from the network; what they cannot run goes to the next best.
_DERIVED = ("openvino", "compile", "tensorrt")
_DEVICES = {"openvino": "cpu", "bf16": "cpu", "cuda_amp": "cuda", "tensorrt": "cuda"}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
# values of ONEDNN_MAX_CPU_ISA that keep oneDNN, in PyTorch and in OpenVINO, from multiplying bfloat16 in hardware
_ISA_WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})

# Below this many voxels "auto" does not convert. PDV-Net on two cores with AVX512-BF16: importing, tracing, converting
# and checking take about 1 s, once; an input of 64 x 64 x 64 takes 45 ms in PyTorch's bfloat16 and 21 ms in OpenVINO.
# The conversion pays for itself after some forty inputs of that size, but within the first one of 512 x 512 x 64.
SMALL_VOXELS = 64**3
COMPILED_SHAPES = 2
CACHE_ENTRIES = 8
# float32 results of OpenVINO differ from PyTorch's by about 1e-6 of the range; a wrong conversion by far more.
CHECK_TOLERANCE = 1e-3


def accelerate(
    network: nn.Module, device: torch.device | str = "cpu", mode: str = "auto", cache_dir: str | None = None
) -> nn.Module:
    """Wrap a network so that its evaluation is fast on the device at hand.

    The returned module shares parameters, buffers and children with the network and has the same ``state_dict`` keys;
    other attributes are looked up in the network. Weights may be loaded or changed at any time: what is derived from
    them is made at the first forward that needs it and made again when they have changed.

    The network itself runs, unchanged, in training mode, for an input that requires a gradient, with further arguments,
    and while it is traced, scripted, compiled or exported. It also runs, in bfloat16 or mixed precision where asked
    for, if a part of it is in training mode, as is dropout for Monte Carlo predictions. In the modes ``"openvino"``,
    ``"compile"`` and ``"tensorrt"`` the output carries no gradient and hooks inside the network do not fire;
    use ``"eager"`` where they should.

    Args:
        network: float32 module whose ``forward`` takes a tensor and, in evaluation, returns one.
        device: where the network is moved to.
        mode: ``"eager"`` (plain float32), ``"channels_last"`` (float32), ``"bf16"`` (channels-last and autocast on the
            CPU), ``"openvino"`` (bfloat16 where the CPU has it, else float32; dense blocks as in
            :mod:`volseg.runtime.shared_dense_block`), ``"compile"``
            (channels-last, bfloat16 as in ``"bf16"`` or ``"cuda_amp"``, and ``torch.compile``; needs a C++ compiler on
            the CPU, Triton on a GPU), ``"cuda_amp"`` (channels-last and autocast), ``"tensorrt"`` (float16, see
            :mod:`volseg.runtime.tensorrt`; where it cannot run, ``"auto"``), or ``"auto"``: on a CPU OpenVINO, or
            ``"bf16"`` for inputs smaller
            than ``SMALL_VOXELS``, on CUDA ``"cuda_amp"``, elsewhere ``"eager"``. What is missing is replaced by the
            next best, with one warning.
            ``"auto"`` never takes ``"compile"``: ``docs/benchmarks`` compares it on CPUs, and on GPUs, where compiling
            should pay for many patches of one size but not for one volume, nothing was measured.
        cache_dir: folder for converted networks; the default is ``$XDG_CACHE_HOME/volseg`` or ``~/.cache/volseg``. A
            folder that cannot be written means no cache, and no TensorRT, which runs what is in a file.

    Shapes:
        those of the network, batch and channels first; the output is float32.

    Raises:
        UserError: unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"runtime: mode must be one of {', '.join(MODES)}. Received: {mode!r}.")
    return _Accelerated(network.to(device), mode, None if cache_dir is None else Path(cache_dir))


@lru_cache(maxsize=1)
def bfloat16_is_native() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); False where that cannot be found out.

    Also False where the environment variable ``ONEDNN_MAX_CPU_ISA`` keeps oneDNN from doing so.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISA_WITHOUT_BF16:
        return False
    try:
        return not _BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check() for check in checks if check is not None)


class _Accelerated(nn.Module):
    """See :func:`accelerate`.

    The network is no child of this module: both hold the same dictionaries of parameters, buffers and children, which
    is what keeps the ``state_dict`` keys and lets ``to``, ``apply`` and ``load_state_dict`` reach it.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, mode: str, cache_dir: Path | None) -> None:
        training = network.training
        object.__setattr__(self, "_network", network)
        super().__init__()
        self._parameters, self._buffers, self._modules = network._parameters, network._buffers, network._modules
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self.training = training
        self._mode = mode
        self._cache_dir = cache_dir
        self.__setstate__({})

    @property
    def training(self) -> bool:
        return self._network.training

    @training.setter
    def training(self, value: bool) -> None:
        self._network.training = value

    def __getattr__(self, name: str) -> Any:
        if name == "_network":  # while unpickling, before the network is there
            raise AttributeError(name)
        return getattr(self._network, name)

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_engine", "_compiled", "_tensorrt", "_lock")
        return {k: v for k, v in self.__dict__.items() if k not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._said: set[str] = set()
        self._unusable: set[str] = set()
        self._engine: _OpenVINO | None = None
        self._compiled: CompiledNetwork | None = None
        self._tensorrt: TensorRTNetwork | None = None
        self._lock = threading.Lock()

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of this module."""
        return self._network

    def _get_name(self) -> str:
        return self._network._get_name()

    def extra_repr(self) -> str:
        return f"accelerated={self._mode!r}"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._network.load_state_dict(*args, **kwargs)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        if self.training or args or kwargs or needs_gradient or _is_exporting():
            return self._network(x, *args, **kwargs)
        x = x.float()
        mode = self._choose(x)
        while mode in _DERIVED:
            y = getattr(self, f"_run_{mode}")(x)
            if y is not None:
                return y
            mode = self._usable(self._next_best(mode, x), x)
        return self._run_torch(mode, x)

    def _choose(self, x: torch.Tensor) -> str:
        mode, on = self._mode, x.device.type
        needed = _DEVICES.get(mode, on)
        if needed != on:
            other = "auto" if mode == "tensorrt" else "eager"
            where = "a GPU with CUDA" if needed == "cuda" else "the CPU"
            here = f"on {where} only, the input is on {on.upper()}"
            self._say(logging.WARNING, f"{mode} runs {here}: {other} runs in its place")
            mode = other
        if mode in ("auto", *_DERIVED) and any(module.training for module in self._network.modules()):
            mode = self._autocast_mode(x)  # what is derived has no dropout, and cannot be checked against one that has
        elif mode == "auto":
            mode = self._automatic(x)
        elif mode == "bf16" and not bfloat16_is_native():
            self._say(logging.WARNING, "this CPU has no bfloat16: channels_last runs in place of bf16")
            mode = "channels_last"
        return self._usable(mode, x)

    def _automatic(self, x: torch.Tensor) -> str:
        mode = {"cpu": "openvino", "cuda": "cuda_amp"}.get(x.device.type, "eager")
        if mode == "openvino" and x.shape[2:].numel() < SMALL_VOXELS:
            return "bf16" if bfloat16_is_native() else "channels_last"
        return mode

    def _usable(self, mode: str, x: torch.Tensor) -> str:
        while mode in self._unusable:
            mode = self._next_best(mode, x)
        return mode

    def _next_best(self, mode: str, x: torch.Tensor) -> str:
        if mode == "tensorrt":
            return self._automatic(x)
        if mode in ("openvino", "compile"):
            return self._autocast_mode(x)
        return "channels_last"

    @staticmethod
    def _autocast_mode(x: torch.Tensor) -> str:
        if x.device.type == "cuda":
            return "cuda_amp"
        return "bf16" if x.device.type == "cpu" and bfloat16_is_native() else "channels_last"

    def _replace(self, mode: str, reason: object, x: torch.Tensor) -> None:
        # what is left of OpenVINO's messages without the places in its sources
        lines = [line for line in str(reason).splitlines() if line and not line.startswith("Exception from")]
        self._say(logging.WARNING, f"{self._next_best(mode, x)} runs in place of {mode}: {' '.join(lines)[:300]}")

    def _give_up(self, mode: str, reason: object, x: torch.Tensor) -> None:
        self._unusable.add(mode)
        self._replace(mode, reason, x)
        if mode == "compile":
            self._compiled = None

    def _say(self, level: int, message: str) -> None:
        """Log a line, once for this module."""
        if message not in self._said:
            self._said.add(message)
            logger.log(level, message)

    def _announce(self, how: str, x: torch.Tensor) -> None:
        if how not in self._said:
            self._said.add(how)
            count = torch.get_num_threads()
            threads = f", {count} thread{'s' * (count > 1)}" if x.device.type == "cpu" else ""
            logger.info("%s on %s%s (input %s)", how, x.device.type.upper(), threads, "x".join(map(str, x.shape)))

    def _run_openvino(self, x: torch.Tensor) -> torch.Tensor | None:
        """The output, or None where OpenVINO cannot run this input."""
        with self._lock:  # one workspace, which several threads would overwrite for each other
            try:
                self._engine = self._engine or _OpenVINO(self._network, self._cache_dir)
                y = self._engine(_plain(x))
            except ImportError as error:
                self._give_up("openvino", f"{error}. Install it with: pip install openvino", x)
                return None
            except _ConversionError as error:
                self._replace("openvino", error, x)
                return None
            except ValueError:  # the network refuses the input; it will say so again, with sizes and not with tracers
                return None
        self._announce(f"OpenVINO {self._engine.precision}", x)
        return _as(y, x)

    def _run_tensorrt(self, x: torch.Tensor) -> torch.Tensor | None:
        """The output, or None where TensorRT cannot run this input."""
        from volseg.runtime.tensorrt import EngineError, TensorRTNetwork  # noqa: PLC0415

        with self._lock:  # one buffer for the output
            try:
                folder = model_cache(self._cache_dir) / "tensorrt"
                self._tensorrt = self._tensorrt or TensorRTNetwork(self._network, folder)
                y = self._tensorrt(_plain(x))
            except ImportError as error:
                self._give_up("tensorrt", error, x)
                return None
            except EngineError as error:
                self._replace("tensorrt", error, x)
                return None
            except ValueError:  # the network refuses the input; it will say so again
                return None
        self._announce("TensorRT fp16", x)
        return _as(y, x)

    def _run_compile(self, x: torch.Tensor) -> torch.Tensor | None:
        """The output, or None where the network cannot be compiled."""
        from volseg.runtime.compiled import CompilationError, CompiledNetwork  # noqa: PLC0415

        autocast = self._autocast_mode(x)
        _use_channels_last(self._network)
        try:
            self._compiled = self._compiled or CompiledNetwork(self._network, model_cache(self._cache_dir) / "inductor")
            with _autocast(autocast, x):
                y = self._compiled(_to_channels_last(_plain(x)))
        except CompilationError as error:
            self._give_up("compile", error, x)
            return None
        self._announce(f"{_description(autocast)}, compiled,", x)
        return _as(_to_float32(y), x)

    def _run_torch(self, mode: str, x: torch.Tensor) -> Any:
        x_as_is = x
        if mode != "eager":
            _use_channels_last(self._network)
            x = _to_channels_last(x)
        try:
            with _autocast(mode, x):
                y = self._network(x)
        except RuntimeError as error:
            if mode != "bf16":
                raise
            y = self._network(x)  # raises again where bfloat16 was not to blame
            self._give_up("bf16", error, x_as_is)
            mode = "channels_last"
        self._announce(_description(mode), x_as_is)
        return _to_float32(y)


class _ConversionError(RuntimeError):
    """This network, or this shape, cannot be run as converted."""


class _FixedModel(NamedTuple):
    """What OpenVINO compiled for one shape, and whether its output is still to be enlarged by two."""

    compiled: Any
    doubles: bool


class _OpenVINO:
    """A network in OpenVINO, compiled for the shapes that it last met.

    Shapes are compiled one by one: at 512 x 512 x 64 PDV-Net with free sizes needed 0.6 GB and a third of the time more
    than with fixed ones, and compiling costs 0.1 s. OpenVINO's own cache of compiled models saved none of these 0.1 s;
    what is worth keeping on disk is the converted network.
    """

    def __init__(self, network: nn.Module, cache_dir: Path | None) -> None:
        openvino = _import_openvino()
        from openvino import frontend  # noqa: PLC0415
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

        self._ov, self._frontend, self._decoder = openvino, frontend, TorchScriptPythonDecoder
        self._errors = (
            RuntimeError,
            frontend.GeneralFailure,
            frontend.NotImplementedFailure,
            frontend.OpConversionFailure,
            frontend.OpValidationFailure,
        )
        self._network = network
        self._cache = _ModelCache(cache_dir)
        self._fingerprint: tuple[Any, ...] = ()
        self._digest = ""
        self._forget()
        self.precision = "bf16" if bfloat16_is_native() else "f32"

    def _forget(self) -> None:
        self._models: dict[tuple[int, ...], Any] = {}
        self._compiled: OrderedDict[tuple[int, ...], _FixedModel] = OrderedDict()
        self._failed: dict[tuple[int, ...], str] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run a float32 tensor on the CPU; ``_ConversionError`` where that cannot be done."""
        current = fingerprint(self._network)
        if current != self._fingerprint:
            self._fingerprint = current
            content = digest(self._network, self._ov.__version__)
            if content != self._digest:  # else the tensors moved but hold what they held
                self._digest = content
                self._forget()
        shape = tuple(x.shape)
        if shape in self._failed:
            raise _ConversionError(self._failed[shape])
        try:
            y = self._infer(self._compile(shape), x)
        except self._errors as error:
            self._failed[shape] = str(error)
            raise _ConversionError(str(error)) from error
        return y

    def _infer(self, fixed: _FixedModel, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().contiguous()  # OpenVINO does not keep alive what it shares: a window of a volume is copied here
        y = torch.empty(tuple(fixed.compiled.output(0).shape))
        request = fixed.compiled.create_infer_request()  # a kept one would keep its output alive
        request.set_input_tensor(0, self._ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(0, self._ov.Tensor(y.numpy(), shared_memory=True))
        request.infer()
        return double_linearly(y) if fixed.doubles else y

    def _compile(self, shape: tuple[int, ...]) -> _FixedModel:
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
            return self._compiled[shape]
        while len(self._compiled) >= COMPILED_SHAPES:
            self._compiled.popitem(last=False)
        self._compiled[shape] = self._fixed(self._model(shape), shape, self.precision)
        return self._compiled[shape]

    def _fixed(self, model: Any, shape: tuple[int, ...], precision: str) -> _FixedModel:
        model = model.clone()
        model.reshape(list(shape))
        last = model.get_results()[0].input_value(0).get_node()
        doubles = _doubles_linearly(last)
        if doubles:
            model = self._ov.Model([last.input_value(0)], model.get_parameters())
        # PyTorch's thread count honours OMP_NUM_THREADS and torch.set_num_threads
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return _FixedModel(_core().compile_model(model, "CPU", config), doubles)

    def _model(self, shape: tuple[int, ...]) -> Any:
        """The network in OpenVINO's form with free sizes, from memory, from disk, or converted."""
        example, check = _example_shapes(shape)
        if example in self._models:
            return self._models[example]
        expected = _try_network(self._network, check)
        if expected is None:  # the network takes no other size
            example = shape
        for network in self._candidates(example, expected):
            content = digest(network, self._ov.__version__)
            key = hashlib.sha256(f"{content} {example}".encode()).hexdigest()
            model = self._cache.load(key)
            try:
                if model is not None and self._agrees(model, check, expected):
                    break
            except self._errors:  # damaged, though it could be read
                pass
            try:
                model = self._convert(network, example)
                if self._agrees(model, check, expected):
                    self._cache.store(key, model)
                    break
            except (*self._errors, ValueError):
                if network is self._network:
                    raise
        else:
            raise _ConversionError(f"the converted {type(self._network).__name__} gives other numbers at {check}")
        self._models[example] = model
        return model

    def _candidates(self, shape: tuple[int, ...], expected: torch.Tensor | None) -> Iterator[nn.Module]:
        """Copies of the network that need fewer multiplications, where there may be some, and the network.

        Other layers may not allow what was done to the convolutions: a copy is to be checked.
        """
        if expected is not None:
            with suppress(RuntimeError, TypeError):  # cannot be copied
                if shared_dense_block.is_applicable(self._network):
                    yield share_dense_blocks(self._network, _noise(shape))
        yield self._network

    def _convert(self, network: nn.Module, shape: tuple[int, ...]) -> Any:
        example = torch.zeros(shape)
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            # sizes that Python code checked become constants of the trace; _agrees finds out if that matters
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(network, example, check_trace=False)
        # openvino.convert_model does the same and, when it fails, leaves the root logger deaf to warnings
        frontend = self._frontend.FrontEndManager().load_by_framework("pytorch")
        decoder = self._decoder(traced, example_input=example)  # used until the model is complete
        model = frontend.convert(frontend.load(decoder))
        if len(model.outputs) != 1:
            raise _ConversionError(f"{type(self._network).__name__} returns {len(model.outputs)} tensors")
        return model

    def _agrees(self, model: Any, shape: tuple[int, ...], expected: torch.Tensor | None) -> bool:
        """Whether a converted network gives the network's numbers at a shape that it was not traced with."""
        if expected is None:
            return True
        actual = self._infer(self._fixed(model, shape, "f32"), _noise(shape))
        if actual.shape != expected.shape:
            return False
        return bool((actual - expected).abs().max() <= CHECK_TOLERANCE * expected.abs().max())


class _ModelCache:
    """Converted networks on disk, one folder each, complete or absent."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = model_cache(folder) / "openvino"

    def load(self, key: str) -> Any | None:
        path = self.folder / key / "model.xml"
        try:
            os.utime(path.parent)  # the oldest are removed first
            return _core().read_model(path)
        except (OSError, RuntimeError):  # absent, or cut short by a full disk
            return None

    def store(self, key: str, model: Any) -> None:
        openvino = _import_openvino()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.folder))
            try:
                openvino.save_model(model, temporary / "model.xml", compress_to_fp16=False)
                shutil.rmtree(self.folder / key, ignore_errors=True)
                temporary.rename(self.folder / key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            keep_newest(self.folder, CACHE_ENTRIES)
        except (OSError, RuntimeError) as error:
            logger.debug("converted network not cached in %s: %s", self.folder, error)


def _import_openvino() -> Any:
    """The package, imported so that it does not call home.

    OpenVINO reports each import to Google Analytics, without asking, if the package ``openvino_telemetry`` is there;
    if it is not, OpenVINO has a stub for it. A program that reads patients' images takes the stub.
    """
    hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]


@lru_cache(maxsize=1)
def _core() -> Any:
    return _import_openvino().Core()


def _doubles_linearly(node: Any) -> bool:
    """Whether a node of a model with fixed shapes does what :func:`double_linearly` does, and faster than OpenVINO."""
    if node.get_type_name() != "Interpolate":
        return False
    attributes = node.get_attributes()
    before, after = (list(output.get_shape()) for output in (node.input_value(0), node.output(0)))
    return (
        attributes["mode"] == "linear_onnx"
        and attributes["coordinate_transformation_mode"].endswith("half_pixel")
        and not attributes["antialias"]
        and after == [*before[:2], *(2 * size for size in before[2:])]
        and len(before) == 5
    )


def _example_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two small shapes that a network treats like the given one: to trace with and to check the result with.

    Tracing at full size would need the network's memory in PyTorch. The remainders modulo 32 are kept, because code
    that pads or crops looks at whether sizes are even at each of (up to) five halvings.
    """

    def small(parity: int) -> tuple[int, ...]:
        sizes = (min(size, size % 32 + 32 * (1 + (axis + parity) % 2)) for axis, size in enumerate(shape[2:]))
        return tuple(shape[1:2]) + tuple(sizes)

    return (1, *small(0)), (2, *small(1))


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _try_network(network: nn.Module, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The network's output for noise, or None if it does not take the shape."""
    try:
        with torch.no_grad():
            y = network(_noise(shape))
    except (ValueError, RuntimeError):
        return None
    if not isinstance(y, torch.Tensor):
        raise _ConversionError(f"{type(network).__name__} returns a {type(y).__name__}, not a tensor")
    return y


def _use_channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions channels-last, in place; shapes and values stay.

    With one input channel the layout of the input says nothing; the weights' then decides how the network runs.
    """
    with torch.inference_mode(False):  # else the weights could never be trained again
        for parameter in network.parameters():
            layout = _CHANNELS_LAST.get(parameter.ndim)
            if layout is not None and not parameter.is_contiguous(memory_format=layout):
                parameter.data = parameter.data.contiguous(memory_format=layout)


def _is_exporting() -> bool:
    return torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()


def _to_float32(y: Any) -> Any:
    if isinstance(y, torch.Tensor):
        return y.float()
    return type(y)(_to_float32(item) for item in y) if isinstance(y, list | tuple) else y


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _as(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """An output with the metadata of the input, if it has any."""
    return convert_to_dst_type(y, x)[0] if isinstance(x, MetaTensor) else y


def _to_channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=_CHANNELS_LAST.get(x.ndim, torch.contiguous_format))


def _autocast(mode: str, x: torch.Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=_autocast_dtype(mode), enabled=mode in ("bf16", "cuda_amp"))


def _autocast_dtype(mode: str) -> torch.dtype:
    emulated = mode == "cuda_amp" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if emulated else torch.bfloat16


def _description(mode: str) -> str:
    """How PyTorch runs the network in a mode."""
    if mode == "bf16":
        return "PyTorch bf16 channels-last"
    if mode == "cuda_amp":
        return f"PyTorch {str(_autocast_dtype(mode)).removeprefix('torch.')} channels-last"
    return f"PyTorch float32 {mode}"
