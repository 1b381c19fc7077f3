"""Fitted calibrators as JSON: what was written comes back, anything else is refused."""

import json

import numpy as np
import pytest
import simulated

from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.calibrators import affine
from hypelora_jax.errors import UserError

NAMES = [name for name in calibrators.CALIBRATORS if name != "identity"]


def fit(name, logits, labels):
    if name == "dirichlet":
        return affine.fit_dirichlet(logits, labels, penalty=0.01)
    return calibrators.build(name).fit(logits, labels)


@pytest.mark.parametrize(
    "state",
    [
        calibrators.Identity(),
        calibrators.Temperature(1.25, 0.5, 0.4, 100),
        calibrators.Temperature(0.1 + 0.2),
    ],
)
def test_json_round_trip(state):
    back = calibrators.from_json(calibrators.to_json(state))
    assert type(back) is type(state)
    np.testing.assert_equal(tuple(back), tuple(state))  # NaN equals NaN here


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip_of_a_fit(name):
    logits, labels = simulated.split(3, 50)
    state = fit(name, logits, labels)
    text = calibrators.to_json(state)
    back = calibrators.from_json(text)
    assert type(back) is type(state) and calibrators.to_json(back) == text
    for field in json.loads(text):
        if field not in ("kind", "nll_before", "nll_after", "n", "temperature"):
            values = {k: v for k, v in json.loads(text).items() if k != field}
            with pytest.raises(UserError, match=f"no field '{field}'"):
                calibrators.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "kind None; expected one of beta, dirichlet, histogram, identity"),
        ('{"kind": "magic"}', "kind 'magic'; expected one of"),
        ('{"kind": ["vector"]}', "kind .* expected one of"),
        ('{"kind": "temperature"}', "temperature None; expected a number above 0"),
        ('{"kind": "temperature", "temperature": 0}', "temperature 0; expected"),
        ('{"kind": "temperature", "temperature": NaN}', "temperature nan; expected"),
        ('{"kind": "temperature", "temperature": true}', "temperature True; expected"),
        ('{"kind": "temperature", "temperature": "2"}', "temperature '2'; expected"),
        ('{"kind": "temperature", "temperature": 2, "n": "3"}', "n '3'; expected"),
        ('{"kind": "identity", "t": 1}', "unknown field 't'; expected only its kind"),
        ('{"kind": "vector", "scale": [1, 1], "bias": [1]}', "for \\[1, 2\\] classes"),
        ('{"kind": "vector", "scale": [1, "x"], "bias": [1, 2]}', "numbers as 'scale'"),
        ('{"kind": "vector", "scale": [1, true], "bias": [1, 2]}', "numbers as 'scale"),
        ('{"kind": "vector", "scale": [1, NaN], "bias": [1, 2]}', "numbers as 'scale'"),
        ('{"kind": "vector", "scale": [[1], [2]], "bias": [1, 2]}', "a wrong scale"),
        ('{"kind": "vector", "scale": {"a": 1}, "bias": [1, 2]}', "numbers as 'scale'"),
        (
            '{"kind": "dirichlet", "weight": [[1], [2]], "bias": [1, 2], "penalty": 1}',
            "a square matrix",
        ),
        (
            '{"kind": "dirichlet", "weight": [[1, 2], [2]], "bias": [1], "penalty": 1}',
            "numbers as 'weight'",
        ),
        ('{"kind": "isotonic", "x": [[0.5, 0.2]], "y": [[0, 1]]}', "that increase"),
        ('{"kind": "isotonic", "x": [[0.2, 0.5]], "y": [[1, 0]]}', "do not fall"),
        ('{"kind": "isotonic", "x": [[0.2]], "y": [[1, 1]]}', "do not fall"),
        ('{"kind": "isotonic", "x": [[]], "y": [[]]}', "do not fall"),
        (
            '{"kind": "isotonic", "x": [0.2], "y": [1]}',
            "no lists of numbers as 'x'",
        ),
        (
            '{"kind": "histogram", "edges": [[0.5]], "values": [[0.5]]}',
            "one value more",
        ),
        (
            '{"kind": "histogram", "edges": [[0.5]], "values": [[0.5, 2]]}',
            "one value more",
        ),
        ('{"kind": "beta", "a": [-1], "b": [1], "c": [0]}', "at least 0"),
        ('{"kind": "beta", "a": [], "b": [], "c": []}', "for \\[0\\] classes"),
        ('{"kind": "beta", "a": 1, "b": 1, "c": 1}', "a wrong a"),
    ],
)
def test_refuses_json(text, message):
    with pytest.raises(UserError, match=message):
        calibrators.from_json(text)
