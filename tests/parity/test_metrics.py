"""Every metric of the reference, on the probabilities stored with it, in float64."""

from functools import partial

from parity import golden

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import thresholded


def _ours(name):
    """Function of (probs, labels, [bins]) for a name in the file."""
    if name.startswith("reference_tace_"):
        eps = float(name.removeprefix("reference_tace_"))
        return partial(metrics.thresholded_ace, eps=eps, pairing="reference")
    return getattr(metrics, name)


def _cases():
    """(key, probs, labels, function, its settings, wanted) of each stored number."""
    held = golden.load("metrics.npz")
    for key in held:
        case, name, *bins = key.split("/")
        if name not in ("probs", "labels"):
            settings = {"bins": int(bins[0])} if bins else {}
            probs, labels = held[f"{case}/probs"], held[f"{case}/labels"]
            yield key, probs, labels, _ours(name), settings, float(held[key])


def test_numpy_float64_matches_the_reference():
    errors = {
        key: abs(f(probs, labels, **settings) - wanted)
        for key, probs, labels, f, settings, wanted in _cases()
    }
    assert errors
    assert {key: e for key, e in errors.items() if not e <= 1e-12} == {}


def test_what_the_command_prints_matches_the_reference():
    renamed = {
        f"reference_tace_{e}": f"tace_{e}_reference" for e in thresholded.THRESHOLDS
    }
    checked = 0
    for key, probs, labels, _, settings, wanted in _cases():
        name = key.split("/")[1]
        printed = metrics.compute_all(probs, labels, **settings)
        assert abs(printed[renamed.get(name, name)] - wanted) <= 1e-12, key
        checked += 1
    assert checked
