# SPDX-License-Identifier: Apache-2.0
"""Random predictions of a network with dropout, whose spread says how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import nn

__all__ = ["MonteCarloDropoutInferer"]

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class MonteCarloDropoutInferer(Inferer):
    """Run a network as another inferer does; of one in training mode only the dropout stays in that mode.

    MONAI Label scores images by predictions of a network in training mode, in which batch normalisation takes the
    statistics of the one image and PDV-Net returns three outputs. A network in evaluation mode runs as it is.

    Args:
        inferer: runs the network; one plain forward by default.
    """

    def __init__(self, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.inferer = inferer or SimpleInferer()

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if isinstance(network, nn.Module) and network.training:
            network.eval()
            for module in network.modules():
                if isinstance(module, _DROPOUT):
                    module.train()
        return self.inferer(inputs, network, *args, **kwargs)
