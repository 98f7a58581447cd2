# SPDX-License-Identifier: Apache-2.0
"""Decode instances from mask and boundary probabilities in a MONAI pipeline (arXiv 2104.07961, post-processing)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from volseg.data.open_volume import open_chunked_volume
from volseg.instances.decoding import PAPER, Decoding, decode_instances
from volseg.instances.original_grid import labels_of_volume

__all__ = ["DecodeInstancesd"]


class DecodeInstancesd(MapTransform):
    """Decode the network's two channels to instance ids with :func:`volseg.instances.decoding.decode_instances`.

    Where the image was resampled, ids come back on the grid of its file, see
    :func:`volseg.instances.original_grid.labels_in_volume`.

    Args:
        keys: entries ``(2, D, H, W)``, channels mask and boundary, on any device; each becomes instance ids int32
            ``(1, D, H, W)``, 0 for background, with its metadata.
        decoding: method and its parameters.
        logits: whether the channels are logits rather than probabilities.
        orig_key: image, whose meta data say the file, and whether it was resampled.

    Raises:
        ValueError: an entry does not have two channels.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        decoding: Decoding = PAPER,
        logits: bool = False,
        orig_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.logits = logits
        self.decoding = decoding
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        meta = getattr(d.get(self.orig_key), "meta", {})
        for key in self.key_iterator(d):
            channels = convert_to_tensor(d[key], track_meta=False)
            if channels.ndim != 4 or len(channels) != 2:
                raise ValueError(f"{key} must be (2, D, H, W), mask and boundary, got {tuple(channels.shape)}")
            if self.logits:
                channels = torch.sigmoid(channels.float())
            elif channels.dtype == torch.bfloat16:  # unknown to NumPy
                channels = channels.float()
            labels = decode_instances(channels[0], channels[1], self.decoding)
            if meta.get("is_resampled"):
                mask, volume = channels[0].cpu().numpy(), open_chunked_volume(str(meta["filename_or_obj"]))
                labels = labels_of_volume(labels, mask, self.decoding, volume)
            d[key] = convert_to_dst_type(labels[None].view("int32"), dst=d[key], dtype=torch.int32)[0]
        return d
