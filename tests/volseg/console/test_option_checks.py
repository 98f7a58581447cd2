# SPDX-License-Identifier: Apache-2.0
"""Options that are none are told in one line."""

from __future__ import annotations

import pytest

from volseg.console.option_checks import check_training
from volseg.errors import UserError

TRAINING = {"max_epochs": 3, "val_interval": 1, "batch_size": 2, "num_workers": 0}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", -1, r"^max_epochs: a whole number, 1 or more, is needed\. Received: -1\."),
        ("max_epochs", "abc", r"^max_epochs: .*Received: 'abc'\."),
        ("max_epochs", 1.5, r"^max_epochs: .*Received: 1\.5\."),
        ("val_interval", 0, r"^val_interval: .*Received: 0\."),
        ("batch_size", None, r"^batch_size: .*Received: None\."),
        ("num_workers", -1, r"^num_workers: a whole number, 0 or more.*Received: -1\."),
    ],
)
def test_training(option, value, message):
    check_training(**TRAINING)
    with pytest.raises(UserError, match=message) as caught:
        check_training(**TRAINING | {option: value})
    assert "\n" not in str(caught.value)
