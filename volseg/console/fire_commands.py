# SPDX-License-Identifier: Apache-2.0
"""Run the commands of ``python -m``; report a user's mistake as one line on stderr and exit status 1."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import fire
from fire.decorators import SetParseFn

from volseg.errors import UserError

__all__ = ["one_line", "run"]


def run(commands: Mapping[str, Callable[..., None]], name: str) -> None:
    """Run the command that the command line names.

    Args:
        commands: functions by name.
        name: how to start the program, shown in its help.
    """
    arguments = sys.argv[1:]
    try:
        if arguments and not arguments[0].startswith("-"):
            if arguments[0] not in commands:
                raise UserError(f"{name} has no command {arguments[0]}; use one of {', '.join(commands)}")
            _check_options(arguments[0], commands[arguments[0]], arguments[1:])
            if not {"--help", "-h"} & set(arguments):  # the decorator would show in the help
                _check_required(arguments[0], commands[arguments[0]], arguments[1:])
                _take_text_as_text(commands[arguments[0]])
        fire.Fire(dict(commands), name=name)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # from `| head`; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # the disk, not a mistake
        print(f"error: {one_line(f'{error.filename}: {error.strerror}' if error.filename else error)}", file=sys.stderr)
        raise SystemExit(1) from None


def one_line(text: object) -> str:
    """Return a text without line breaks or terminal control characters, which a file name may hold."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))


def _check_options(command: str, function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Refuse unknown options: Fire would run the command without them before it complains."""
    parameters = inspect.signature(function).parameters
    for argument in arguments:
        if argument == "--":  # the rest is for Fire itself
            return
        if not re.match("--|-[a-zA-Z]", argument):
            continue
        option = argument.lstrip("-").partition("=")[0].replace("-", "_")
        is_shortcut = len(option) == 1 and any(parameter.startswith(option) for parameter in parameters)
        if not ({option, option.removeprefix("no")} & {*parameters, "help", "h"} or is_shortcut):
            known = ", ".join(f"--{parameter}" for parameter in parameters)
            raise UserError(f"{command} has no option {argument}; use one of {known}")


def _check_required(command: str, function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Refuse a command line with too few arguments: Fire would print many lines of usage."""
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    options = [argument for argument in arguments if re.match("--|-[a-zA-Z]", argument)]
    named = {option.lstrip("-").partition("=")[0].replace("-", "_") for option in options}
    missing = [name for name in required if not {name, name[0]} & named]
    values = len(arguments) - len(options)
    if values < len(missing):
        raise UserError(
            f"{command} needs {missing[values]}, got {' '.join(arguments) or 'no arguments'}; "
            f"use {command} {' '.join(name.upper() for name in required)}, or see {command} --help"
        )


def _take_text_as_text(function: Callable[..., None]) -> None:
    """Keep Fire from reading a folder named 1e3 as a number or one named [a,b] as a list."""
    parameters = inspect.signature(function).parameters.values()
    texts = [p.name for p in parameters if p.annotation in ("str", "str | None", str)]
    if texts:
        SetParseFn(str, *texts)(function)
