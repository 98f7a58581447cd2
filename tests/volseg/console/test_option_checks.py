# SPDX-License-Identifier: Apache-2.0
"""Invalid options are reported in one line."""

from __future__ import annotations

import pytest

from volseg.console.option_checks import check_training
from volseg.errors import UserError
from volseg.transforms.decode_instances import DecodeInstancesd

TRAINING = {"max_epochs": 3, "val_interval": 1, "batch_size": 2, "num_workers": 0}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", -1, r"^max_epochs must be an integer >= 1, got -1$"),
        ("max_epochs", "abc", r"^max_epochs .*, got 'abc'$"),
        ("max_epochs", 1.5, r"^max_epochs .*, got 1\.5$"),
        ("val_interval", 0, r"^val_interval .*, got 0$"),
        ("batch_size", None, r"^batch_size .*, got None$"),
        ("num_workers", -1, r"^num_workers must be an integer >= 0, got -1$"),
    ],
)
def test_training(option, value, message):
    check_training(**TRAINING)
    with pytest.raises(UserError, match=message) as caught:
        check_training(**TRAINING | {option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "flood"}, r"^decoding: .*Received: 'flood'"),
        ({"mask_threshold": 2}, r"^mask_threshold must be a number from 0 to 1, got 2$"),
        ({"min_size": -5}, r"^min_size .*, got -5$"),
        ({"dilation": [1, 7, 6]}, r"^dilation: three odd widths.*Received: \(1, 7, 6\)"),
    ],
)
def test_decoding_before_any_volume(options, message):
    with pytest.raises(UserError, match=message):
        DecodeInstancesd(**options)
