"""What decides how far a few rows move the condition of an adapter."""

import numpy as np
import pytest

from hypelora_jax.exchange.tuning import chosen


@pytest.mark.parametrize(
    ("after", "best"),
    [
        ([[0.5, 0.6, 0.5, 0.6], [0.2, 0.1, 0.2, 0.1], [0.9, 0.9, 0.9, 0.9]], 2),
        ([[0.0, 2.0, 0.1, 1.8]], 0),  # lower by .025, with a standard error of .5
        ([[1.0, 1.0, 1.0, 1.0]], 0),
        ([[1.2, 1.1, 1.3, 1.2]], 0),
        ([[np.nan, 0.1, 0.1, 0.1]], 0),
    ],
)
def test_only_a_gain_above_its_standard_error_counts(after, best):
    assert chosen([np.ones(4), *map(np.array, after)]) == best
