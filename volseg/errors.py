# SPDX-License-Identifier: Apache-2.0
"""The error for mistakes that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in data or arguments: one line that names the file, what was received and what to do.

    On the command line :mod:`volseg.console.command_line` prints it without a traceback; in a program it is a
    ``ValueError``.
    """
