# SPDX-License-Identifier: Apache-2.0
"""How instances are decoded by blocks: values that are checked, and what results depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from volseg.errors import UserError
from volseg.option_checks import number, three_whole_numbers, whole_number
from volseg.postprocessing import DecodingMethod

__all__ = ["DEFAULT_BLOCK_SHAPE", "DEFAULT_HALO", "DecodingOptions"]

DEFAULT_BLOCK_SHAPE = (64, 512, 512)
DEFAULT_HALO = (32, 64, 64)  # of a watershed: about one mitochondrion at 30 x 8 x 8 nm


@dataclass(frozen=True)
class DecodingOptions:
    """Arguments of :func:`volseg.blockwise.decoding.decode_blockwise` of the same names; sequences become tuples.

    Raises:
        UserError: an unknown method, thresholds that are not between 0 and 1, a window of even width, lengths that are
            none.
    """

    method: DecodingMethod = "connected_components"
    mask_threshold: float = 0.9
    boundary_threshold: float = 0.8
    foreground_threshold: float = 0.85
    min_size: int = 128
    dilation: Sequence[int] = (1, 7, 7)
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE
    halo: Sequence[int] = DEFAULT_HALO

    def __post_init__(self) -> None:
        if self.method not in get_args(DecodingMethod):
            raise UserError(
                f"decoding: method must be one of {', '.join(get_args(DecodingMethod))}. Received: {self.method!r}. "
                "Give one of them."
            )
        checked = {
            name: number(name, getattr(self, name), 0, 1)
            for name in ("mask_threshold", "boundary_threshold", "foreground_threshold")
        } | {
            "min_size": whole_number("min_size", self.min_size, 0),
            "dilation": three_whole_numbers("dilation", self.dilation, 1, "[1,7,7]"),
            "block_shape": three_whole_numbers("block_shape", self.block_shape, 1, "[64,512,512]"),
            "halo": three_whole_numbers("halo", self.halo, 0, "[32,64,64]"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if any(width % 2 == 0 for width in self.dilation):
            raise UserError(f"dilation: three odd widths are needed. Received: {self.dilation}. Give it as [1,7,7].")

    def parameters(self) -> dict[str, Any]:
        """What the instances depend on, as JSON holds it: without what has no effect with the method."""
        own = (
            {"foreground_threshold": self.foreground_threshold, "halo": list(self.halo)}
            if self.method == "watershed"
            else {"dilation": list(self.dilation)}
        )
        return {
            "method": self.method,
            "mask_threshold": self.mask_threshold,
            "boundary_threshold": self.boundary_threshold,
            **own,
            "min_size": self.min_size,
        }
