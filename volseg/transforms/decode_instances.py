# SPDX-License-Identifier: Apache-2.0
"""Decode instances from mask and boundary probabilities in a MONAI pipeline (arXiv 2104.07961, post-processing)."""

from __future__ import annotations

import torch
from monai.config import KeysCollection
from monai.utils import convert_to_dst_type, convert_to_tensor

from volseg.instances.decoding import PAPER, Decoding, decode_instances
from volseg.transforms.entries import EachEntryd

__all__ = ["DecodeInstancesd"]


class DecodeInstancesd(EachEntryd):
    """Decode the network's two channels to instance ids with :func:`volseg.instances.decoding.decode_instances`.

    Args:
        keys: entries ``(2, D, H, W)``, channels mask and boundary, on any device; each becomes instance ids int32
            ``(1, D, H, W)``, 0 for background, with its metadata.
        decoding: method and its parameters.
        logits: whether the channels are logits rather than probabilities.

    Raises:
        ValueError: an entry does not have two channels.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        decoding: Decoding = PAPER,
        logits: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.logits = logits
        self.decoding = decoding

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        channels = convert_to_tensor(entry, track_meta=False)
        if channels.ndim != 4 or len(channels) != 2:
            keys = ", ".join(map(str, self.keys))
            raise ValueError(f"{keys} must be (2, D, H, W), mask and boundary, got {tuple(channels.shape)}")
        if self.logits:
            channels = torch.sigmoid(channels.float())
        elif channels.dtype == torch.bfloat16:  # unknown to NumPy
            channels = channels.float()
        labels = decode_instances(channels[0], channels[1], self.decoding)
        return convert_to_dst_type(labels[None].view("int32"), dst=entry, dtype=torch.int32)[0]
