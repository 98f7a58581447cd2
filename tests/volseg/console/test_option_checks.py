# SPDX-License-Identifier: Apache-2.0
"""Invalid options are reported in one line."""

from __future__ import annotations

import pytest

from volseg.console.option_checks import check_training
from volseg.errors import UserError

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
