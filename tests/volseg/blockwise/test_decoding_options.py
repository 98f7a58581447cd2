# SPDX-License-Identifier: Apache-2.0
"""Options of the decoding that are none are told in one line."""

from __future__ import annotations

import pytest

from volseg.blockwise.decoding_options import DecodingOptions
from volseg.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "flood"}, r"^decoding: .*watershed\. Received: 'flood'"),
        ({"mask_threshold": 1.01}, r"^mask_threshold .*from 0 to 1, got 1\.01$"),
        ({"boundary_threshold": "0.8"}, r"^boundary_threshold .*, got '0\.8'$"),
        ({"foreground_threshold": float("nan")}, r"^foreground_threshold .*, got nan$"),
        ({"min_size": 1.5}, r"^min_size .*, got 1\.5$"),
        ({"min_size": -1}, r"^min_size .*>= 0, got -1$"),
        ({"min_size": None}, r"^min_size .*, got None$"),
        ({"dilation": [1, 7, 6]}, r"^dilation: three odd widths.*Received: \(1, 7, 6\)"),
        ({"dilation": 7}, r"^dilation must be three .*, got 7$"),
        ({"halo": [8, -1, 8]}, r"^halo .*>= 0 .*, got \[8, -1, 8\]$"),
        ({"halo": [8, 16]}, r"^halo .*, got \[8, 16\]$"),
        ({"block_shape": [16, 0, 64]}, r"^block_shape .*>= 1 .*, got \[16, 0, 64\]$"),
        ({"block_shape": [16, 2.5, 64]}, r"^block_shape .*, got \[16, 2\.5, 64\]$"),
        ({"block_shape": [16, True, 64]}, r"^block_shape .*, got \[16, True, 64\]$"),
    ],
)
def test_decoding(options, message):
    with pytest.raises(UserError, match=message) as caught:
        DecodingOptions(**options)
    assert "\n" not in str(caught.value)


def test_parameters_leave_out_what_has_no_effect():
    components = DecodingOptions(halo=[1, 2, 3], min_size=20.0)
    assert components.parameters() == DecodingOptions(foreground_threshold=0.1, min_size=20).parameters()
    watershed = DecodingOptions("watershed", halo=[1, 2, 3])
    assert watershed.parameters()["halo"] == [1, 2, 3]
    assert watershed.parameters() == DecodingOptions("watershed", halo=(1, 2, 3), dilation=(1, 1, 1)).parameters()
