# SPDX-License-Identifier: Apache-2.0
"""Extend ``python -m monai.bundle`` with one-line errors and a check of overrides."""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run
from monai.bundle.reference_resolver import ReferenceResolver
from tqdm import tqdm

from volseg.console.fire_commands import one_line
from volseg.console.option_checks import is_command_line
from volseg.errors import UserError

__all__ = ["find_user_error", "prepare", "unknown_overrides"]

# a UserError of a data loading worker, as it appears in the error of the main process
WORKER_ERROR = re.compile(rf"{re.escape(UserError.__module__)}\.{UserError.__qualname__}: (.*)")
# what PyTorch, its oneDNN, Python and the loader of libraries say when the system gives them no memory
NO_MEMORY = re.compile(
    r"can't allocate memory: you tried to allocate (.*?)\.|could not (?:create|execute) a primitive"
    "|can't start new thread|failed to map segment from shared object"
)
# a file system's refusals, which no code can prevent
OF_THE_DISK = {
    getattr(errno, name) for name in ("EACCES", "EDQUOT", "ELOOP", "ENAMETOOLONG", "ENOSPC", "EPERM", "EROFS")
}
OPTION = re.compile("--|-[a-zA-Z]")
# these begin an expression, a reference and a macro of MONAI's configs
CONFIG_SIGNS = ("$", "@", "%")
SWITCHES = {"true": True, "false": False}


def prepare() -> None:
    """Set up one-line errors, and check overrides and code; every config calls this at the head of ``run``.

    Errors, overrides and paths concern only ``python -m monai.bundle run``. Names of files and folders are taken as
    they were typed, where MONAI and Fire would read numbers, lists, expressions and references; ``false`` is ``False``.

    Raises:
        UserError: an override does not name an item of the config or has another type, a path is empty, or the bundle's
            code was imported from another copy of the bundle.
    """
    if is_command_line():
        _set_up_one_line_errors()
        if len(sys.argv) > 1 and sys.argv[1] == "run":
            unknown_overrides(sys.argv[2:])
            _take_switches(_options(sys.argv[2:]))
            _take_paths_as_text(_options(sys.argv[2:]))
    # MONAI's ConfigWorkflow.run puts the folder of the running bundle there
    _check_code_is_beside_configs(Path(sys.path[1]))


def _set_up_one_line_errors() -> None:
    sys.excepthook = _print_user_error
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_traceback)
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(_BesideProgressBars())
    logging.setLoggerClass(_Logger)
    # Ignite logs the error that ends a run a second time; the line printed at the end is enough
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


def unknown_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides of unknown items: MONAI adds them silently, so ``--max_epoch 5`` would change nothing.

    Args:
        arguments: arguments after ``python -m monai.bundle run``.

    Raises:
        UserError: names the override and the closest item.
    """
    overrides = _options(arguments)
    # 'a.json', 'a.json,b.json' or "['a.json', 'b.json']"; a path may hold spaces
    files = [f.strip() for f in re.split(r"[\[\]'\",]+", overrides.get("config_file", "")) if f.strip()]
    if not files:
        return
    parser = ConfigParser()
    parser.read_config(files)
    for name in overrides.keys() - inspect.signature(bundle_run).parameters.keys():
        item = name.lstrip("+").replace("::", "#")
        parent = item.rpartition("#")[0]
        # an argument that a component does not spell out (network_def#dropout) may be added to it
        if item not in parser and (not parent or parent not in parser):
            close = difflib.get_close_matches(item, [k for k in parser.get() if k != "_meta_"], n=1)
            hint = f"Did you mean --{close[0]}?" if close else f"See the top of {files[0]} for its hyperparameters."
            raise UserError(f"{files[-1]} has no item for --{name}. {hint}")
        if item in parser:
            _check_type(name, parser[item], overrides[name])


def find_user_error(error: BaseException | None) -> str | None:
    """Return the message of the :class:`UserError` among an exception and its causes, if there is one."""
    while error is not None:
        # check this first: a worker's UserError arrives as a UserError whose text holds the worker's traceback
        found = WORKER_ERROR.findall(str(error))
        if found:
            return found[-1]
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            return f"{error.filename or 'a file'}: {error.strerror}"
        refused = NO_MEMORY.search(str(error))
        if refused or isinstance(error, MemoryError | torch.OutOfMemoryError):
            size = (refused and refused[1]) or " ".join(str(error).split())
            return f"not enough memory ({size}); use a smaller volume, batch_size or spatial_size"
        error = error.__cause__ or error.__context__
    return None


class _BesideProgressBars:
    """Standard error for log records, which keeps a progress bar below them."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()


class _Logger(logging.Logger):
    """Logger for those created later with their own handler, such as MONAI's ``StatsHandler``."""

    def __init__(self, name: str, level: int = logging.NOTSET) -> None:
        super().__init__(name, level)
        self.addFilter(_without_traceback)


def _check_code_is_beside_configs(bundle: Path) -> None:
    """Refuse to run a bundle's configs with the code of another copy; one volseg serves all bundles of a process."""
    for module in bundle.glob("*/__init__.py"):
        imported = getattr(sys.modules.get(module.parent.name), "__file__", None)
        if imported and module.parent.name != "volseg" and not module.samefile(imported):
            root = bundle.resolve()
            raise UserError(
                f"{root / 'configs'} must run with the code in {root / module.parent.name}, "
                f"got {Path(imported).parent}. Start a new process in {root}, or run the configs beside that code."
            )


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Return the ``--key value`` and ``--key=value`` pairs; an option without a value has an empty one."""
    options = {}
    for i, argument in enumerate(arguments):
        if OPTION.match(argument):
            key, equals, value = argument.lstrip("-").partition("=")
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            options[key] = value if equals else "" if OPTION.match(following) else following
    return options


def _check_type(name: str, default: Any, text: str) -> None:
    """Refuse an override of another type than the numbers and switches that a config spells out."""
    value = DefaultParseValue(text) if text else True  # as Fire reads it
    if isinstance(value, str) and value.startswith(CONFIG_SIGNS):
        return
    # a list of components, deeper in the config, may be emptied
    if isinstance(value, list | tuple) and not value and not re.search("#|::", name):
        raise UserError(f"{name} needs a value, got {text}; leave the option out for its default")
    if isinstance(default, bool):
        is_valid, expected = value in (True, False, *SWITCHES), "True or False"
    elif _is_number(default):
        is_valid, expected = _is_number(value), f"a number such as {default}"
    elif isinstance(default, list) and default and all(_is_number(n) for n in default):
        # one number may stand for all
        is_valid = all(_is_number(n) for n in (value if isinstance(value, list | tuple) else [value]))
        expected = f"numbers such as {str(default).replace(' ', '')}"
    else:
        return
    if not is_valid:
        raise UserError(f"{name} must be {expected}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _take_switches(options: Mapping[str, str]) -> None:
    """Put switches into the running config; Fire would read ``false`` as text, which counts as true."""
    if resolver := _running_resolver():
        resolver.resolved_content |= {name: SWITCHES[text] for name, text in options.items() if text in SWITCHES}


def _take_paths_as_text(options: Mapping[str, str]) -> None:
    """Put the names of files and folders into the running config as they were typed.

    Raises:
        UserError: one is empty.
    """
    resolver = _running_resolver()
    for name, text in options.items():
        if name not in ("input", "weights") and not name.endswith(("_dir", "_weights")):
            continue
        if not text.strip():
            raise UserError(f"--{name} needs a file or folder, got {text!r}; leave the option out for its default")
        # --weights may be an expression
        if resolver and (name == "input" or not text.startswith(CONFIG_SIGNS) or Path(text).exists()):
            resolver.resolved_content[name] = text


def _running_resolver() -> ReferenceResolver | None:
    """The resolver of the config that called :func:`prepare`; MONAI offers no other way to it."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ReferenceResolver):
            return caller
        frame = frame.f_back
    return None


def _print_user_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    message = find_user_error(error)
    for bar in list(tqdm._instances):  # what follows would stand behind it in its line
        bar.close()
    if issubclass(kind, KeyboardInterrupt):
        print("stopped. All files written are complete; rerun the command to continue a training.", file=sys.stderr)
    elif message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"error: {one_line(message)}", file=sys.stderr)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drop log records that only repeat a user's mistake, or Ctrl-C, with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, KeyboardInterrupt) or (error and find_user_error(error)))
