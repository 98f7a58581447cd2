# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's server with errors that a user can read, in place of "Internal Server Error"."""

from __future__ import annotations

import logging

from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.interfaces.exception import MONAILabelException

from volseg.console.command_line import find_user_error
from volseg.errors import UserError

logger = logging.getLogger(__name__)


@app.exception_handler(UserError)
@app.exception_handler(MONAILabelException)
async def say_what_to_mend(request: Request, error: Exception) -> JSONResponse:
    """The line of an error that the user can mend; of MONAI Label's own, such as an unknown model, the message."""
    return _answer(request, 400, getattr(error, "msg", None) or str(error))


@app.exception_handler(Exception)
async def say_what_happened(request: Request, error: Exception) -> JSONResponse:
    """The same where MONAI wrapped it; what is left has its traceback in the log."""
    found = find_user_error(error)
    return _answer(request, 400, found) if found else _answer(request, 500, f"{type(error).__name__}: {error}")


def _answer(request: Request, status: int, text: str) -> JSONResponse:
    line = " ".join(text.split())
    logger.error("%s: %s", request.url.path, line)
    return JSONResponse({"detail": line}, status_code=status)
