"""Metrics and calibrators of anyone's probabilities and logits."""

from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.calibration import calibrators
from hypelora_jax.evaluate import file_metrics
from hypelora_jax.run import prediction_files, row_checks


class Calibration(NamedTuple):
    """A fitted calibrator; calling it turns logits into probabilities.

    `state` is what `calibrators.to_json` writes, and str() describes it: "T = 1.31".
    """

    state: Any

    def __call__(self, logits: Any) -> np.ndarray:
        """Return the calibrated probabilities (N, Y), float64, of raw logits (N, Y).

        Raises:
          UserError: there are more or fewer classes than in the fit, or a logit is not
            finite.
        """
        logits_NY = np.asarray(logits, np.float64)
        row_checks.check_logits("logits[{}]".format, logits_NY)
        return calibrators.apply(self.state, logits_NY)

    def __str__(self) -> str:
        return calibrators.describe(self.state)


def calibrate(logits: Any, labels: Any, method: str = "temperature") -> Calibration:
    """Fit a calibrator on logits that the model was not trained on.

    Args:
      logits: (N, Y), raw, of any model; log-probabilities are logits, too.
      labels: (N,) classes 0 to Y - 1; examples with -1 are left out.
      method: one of `calibration.calibrators.CALIBRATORS`.

    Raises:
      UserError: there is no such method, a logit is not finite, a label is not a class,
        or no example has a label.
    """
    given = {"logits": logits, "labels": labels}
    found = prediction_files.labelled("logits", prediction_files.of_arrays(given))
    fit = calibrators.build(method).fit
    return Calibration(fit(found.logits, found.labels))


def metrics(
    probs: Any,
    labels: Any,
    *,
    bins: int = 10,
    soft: Any | None = None,
    replicas: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what `hypelora metrics` prints: accuracy, NLL, Brier score, ECE, ...

    Args:
      probs: (N, Y), rows sum to 1.
      labels: (N,) classes 0 to Y - 1; examples with -1 are left out.
      bins: number of bins of the calibration errors.
      soft: (N, Y) shares of raters; adds metrics of the distance to them.
      replicas: bootstrap replicas; above 0, metrics that have an interval become
        {"value", "low", "high"}.
      level: confidence level of the intervals.
      seed: seed of the replicas and of drawn labels.

    Returns:
      The metrics by name, in float64; docs/calibration.md says what each one is.

    Raises:
      UserError: rows are not probabilities, a label is not a class, or no example has a
        label.
    """
    given = {"probs": probs, "labels": labels}
    given |= {} if soft is None else {"soft": soft}
    return file_metrics.metrics_of(
        prediction_files.labelled("predictions", prediction_files.of_arrays(given)),
        bins,
        replicas=replicas,
        level=level,
        seed=seed,
    )
