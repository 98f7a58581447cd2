# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import sys

import pytest

from volseg.console.fire_commands import run
from volseg.errors import UserError

ERRORS = [
    (UserError("a.zip: not\na zip"), 1, "error: a.zip: not a zip\n"),
    (OSError(errno.EIO, os.strerror(errno.EIO), "a.zip"), 1, "error: a.zip: Input/output error\n"),
    (OSError("no more"), 1, "error: no more\n"),
    (KeyboardInterrupt(), 130, "\ninterrupted\n"),
]


@pytest.mark.parametrize(("error", "status", "said"), ERRORS)
def test_what_ends_a_command_is_one_line(error, status, said, monkeypatch, capsys):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["tools", "fail"])
    with pytest.raises(SystemExit) as ended:
        run({"fail": fail}, "tools")
    assert (ended.value.code, capsys.readouterr().err) == (status, said)
