"""Metrics and calibrators in Python equal those of the commands."""

import json

import jax
import numpy as np
import pytest

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(60, 3)) * 4
LABELS = np.where(RNG.random(60) < 0.6, LOGITS.argmax(axis=1), RNG.integers(0, 3, 60))

Z2 = LOGITS[:, :2]


def test_metrics_are_those_of_the_command(tmp_path, capsys):
    probs = calibrators.softmax(LOGITS)
    file = tmp_path / "p.npz"
    np.savez(file, probs=probs, labels=LABELS)
    assert cli.main(["metrics", f"--predictions={file}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert hypelora_jax.metrics(probs, LABELS) == pytest.approx(printed, rel=1e-12)
    with_intervals = hypelora_jax.metrics(probs, LABELS, replicas=20)
    assert set(with_intervals["ece"]) == {"value", "low", "high"}


def test_rows_without_a_label_are_left_out():
    probs = calibrators.softmax(LOGITS)
    more = np.concatenate([probs, probs[:5]])
    labels = np.concatenate([LABELS, -np.ones(5, int)])
    assert hypelora_jax.metrics(more, labels) == hypelora_jax.metrics(probs, LABELS)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibrate_fits_and_applies(method):
    calibrator = hypelora_jax.calibrate(LOGITS, LABELS, method)
    state = calibrators.CALIBRATORS[method].fit(LOGITS, LABELS)
    wanted = calibrators.apply(state, LOGITS)
    np.testing.assert_array_equal(calibrator(LOGITS), wanted)
    assert str(calibrator) == calibrators.describe(state)
    before = hypelora_jax.metrics(calibrators.softmax(LOGITS), LABELS)
    assert hypelora_jax.metrics(calibrator(LOGITS), LABELS)["nll"] < before["nll"]


def test_arrays_of_jax_and_lists_are_fine():
    small = jax.numpy.asarray(LOGITS, jax.numpy.float32)
    given = hypelora_jax.calibrate(small, list(LABELS))
    assert given(small).dtype == np.float64 and given(LOGITS.tolist()).shape == (60, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hypelora_jax.calibrate(LOGITS, LABELS, "platt"), "platt"),
        (lambda: hypelora_jax.calibrate(LOGITS, LABELS[:-1]), "one for each row"),
        (lambda: hypelora_jax.calibrate(LOGITS, LABELS + 1), "label 3"),
        (lambda: hypelora_jax.calibrate(LOGITS * np.nan, LABELS), "finite"),
        (lambda: hypelora_jax.calibrate(LOGITS, LABELS * 0 - 1), "label"),
        (lambda: hypelora_jax.metrics(LOGITS, LABELS), "probs"),
        (lambda: hypelora_jax.metrics(LOGITS[:, 0], LABELS), "Y"),
        (lambda: hypelora_jax.calibrate(LOGITS, LABELS, "vector")(Z2), "classes"),
        (lambda: hypelora_jax.metrics([[0.5, 0.5]], [0], bins=0), "bins is 0"),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
