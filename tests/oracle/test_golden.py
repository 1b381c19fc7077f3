"""The reference's golden runs in float64: those that `make test` leaves out."""

import pytest
from parity.test_training import ALL, IN_SHORT, in_float64


@pytest.mark.parametrize("name", [name for name in ALL if name not in IN_SHORT])
def test_float64(name):
    in_float64(name)
