"""From which probability on a network is sure, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.beyond.network import sure_above


@pytest.mark.parametrize(
    ("confidence", "right", "share", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], 1.0, 0.6),  # all right: all are sure
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0, 0.8),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.75, 0.6),  # 3 of 4
        ([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 1], 1.0, 0.8),  # whatever their order
        ([0.9, 0.8], [0, 1], 0.9, 1.0),  # none: even the surest is wrong
        ([0.8, 0.8, 0.8], [1, 1, 0], 1.0, 1.0),  # equals are sure or not together
        ([0.9, 0.8, 0.8], [1, 1, 0], 1.0, 0.9),
        ([], [], 0.9, 1.0),
    ],
)
def test_it_is_sure_where_so_many_of_the_validation_digits_are_right(confidence, right, share, expected):
    assert sure_above(np.array(confidence), np.array(right, bool), share) == expected
