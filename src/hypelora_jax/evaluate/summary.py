"""Calibrates and evaluates a chosen model on every split, for summary.json."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hypelora_jax import model, trees
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.adapters.deltas import delta_norms, mean_cosine
from hypelora_jax.data.batches import Dataset, take
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train import ensembles, scoring
from hypelora_jax.train.session import Session
from hypelora_jax.types import Params

TRAIN_SAMPLE = 1000  # number of training examples for the train NLL
Metrics = dict[str, Any]


def summary_of(fitted: Fitted, datasets: Mapping[str, Dataset]) -> dict[str, Any]:
    """Calibrate a chosen model, evaluate it on every split, and return a summary.

    The files of the splits are written to the run's folder.
    """
    fitted, judged = judge(fitted, datasets)
    session, step = fitted.session, fitted.step
    settings, unit = session.settings, session.model.objective.unit
    losses = {s: m.get("uncalibrated", m).get(unit) for s, m in judged.items()}
    losses["train"] = _train_loss(fitted, datasets["train"], unit)
    one = ensembles.member(settings, fitted.trainable, fitted.frozen, 0)
    return {
        "method": settings.method,
        "step": step,
        "trained_parameters": trees.count(fitted.trainable),
        "temperature": judged["calibration"].get("temperature"),
        "selection_metric": unit,
        unit: {s: x for s, x in losses.items() if x is not None},
        "deltas": deltas(session, *one, fitted.alpha),
        "metrics": {s: m for s, m in judged.items() if "n" in m},
    }


def judge(
    fitted: Fitted, datasets: Mapping[str, Dataset]
) -> tuple[Fitted, dict[str, Metrics]]:
    """Calibrate a model, judge every split but train, and write both to the run.

    Returns the calibrated model and the metrics by split. Posterior and calibrator are
    fitted here, on train and calibration only.
    """
    held_out = datasets["calibration"]
    fitted = evaluation.fit_posterior(fitted, datasets["train"], held_out)
    data = {name: part for name, part in datasets.items() if name != "train"}
    answers = {split: fitted.answer(part) for split, part in data.items()}
    logits_NY = answers["calibration"].logits
    fitted = evaluation.calibrated(fitted, logits_NY, held_out.label)
    return fitted, {
        split: evaluation.write_split(fitted, split, part, answers[split])
        for split, part in data.items()
    }


def _train_loss(fitted: Fitted, train: Dataset, unit: str) -> float:
    """Uncalibrated NLL or squared error on the first examples of train."""
    part = take(train, np.arange(min(TRAIN_SAMPLE, len(train.ids))))
    logits_NY = fitted.answer(part).logits
    objective = fitted.session.model.objective
    judged = scoring.judge(objective, logits_NY, part.label, fitted.uncalibrated)
    return judged[unit]


def deltas(
    session: Session, trainable: Params, frozen: Params, alpha: jax.Array
) -> dict[str, Any]:
    """Norm of each site's delta (scale included) and the mean cosine between sites.

    The result is empty without an adapter. It is also empty if the examples bring
    their conditions, because then there is no single adapter.
    """
    parts = session.model.parts
    if not parts.hyper_sites and not parts.lora_sites:
        return {}
    if parts.cond is not None and parts.cond.reads:
        return {}

    def measure(params: Params, alpha: jax.Array) -> tuple[dict, jax.Array]:
        found = model.conditions(parts, params, {})
        compact = model.compact(parts, params, found, alpha)
        placed = lora_lib.place(compact, parts.num_layers)
        return delta_norms(lora_lib.fold(placed, parts.scale)), mean_cosine(placed)

    # whole on every device, so that each of several processes can read the results
    measure = jax.jit(measure, out_shardings=replicated(session.mesh))
    params = trees.union(trainable, frozen)
    params = {n: x for n, x in params.items() if n not in ("backbone", "head")}
    measured, cosine = measure(params, np.asarray(alpha))
    norms: dict[str, float] = {}
    for sites in (parts.hyper_sites, parts.lora_sites):
        for module, site in sites.items():
            values = np.asarray(measured[module])
            norms |= {f"{i}.{module}": float(values[i]) for i in site.layers}
    cosine = float(cosine)
    return {"norms": norms, "mean_cosine": None if np.isnan(cosine) else cosine}
