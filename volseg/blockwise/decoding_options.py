# SPDX-License-Identifier: Apache-2.0
"""How instances are decoded by blocks: values that are checked, and what results depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from volseg.console.option_checks import three_whole_numbers
from volseg.instances.decoding import DecodingMethod, check_decoding

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
        checked = check_decoding(
            self.method,
            self.mask_threshold,
            self.boundary_threshold,
            self.foreground_threshold,
            self.min_size,
            self.dilation,
        ) | {
            "block_shape": three_whole_numbers("block_shape", self.block_shape, 1, "[64,512,512]"),
            "halo": three_whole_numbers("halo", self.halo, 0, "[32,64,64]"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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
