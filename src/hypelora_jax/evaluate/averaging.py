"""Predictions of a trained run, averaged according to its kind of uncertainty."""

import dataclasses
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from hypelora_jax import model, trees
from hypelora_jax.calibration import pooling
from hypelora_jax.config.settings import Settings, UncertaintyConfig
from hypelora_jax.data.batches import Dataset
from hypelora_jax.errors import UserError, choose
from hypelora_jax.evaluate import dropout, laplace
from hypelora_jax.evaluate.fitted import Answer, Answerer, Fitted
from hypelora_jax.hyper import of_members
from hypelora_jax.objectives.judging import has_label
from hypelora_jax.sharding import compiler, rules
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train import ensembles
from hypelora_jax.train.divergence import check_outputs
from hypelora_jax.train.scoring import Forward
from hypelora_jax.train.session import Session
from hypelora_jax.types import Adapter, Batch, Features, Params


class Kind(NamedTuple):
    """A kind of uncertainty: where its members come from, and what they require."""

    trained: bool = False  # members are trained
    derived: bool = False  # works for any run that was trained without members
    draws: Callable[..., dropout.Draws] | None = None  # makes members to predict with
    # (field, values): settings must have one of the values
    needs: tuple[tuple[str, tuple[str, ...]], ...] = ()


KINDS = {
    "none": Kind(),
    "mc_dropout": Kind(derived=True, draws=dropout.masks),
    "deep_ensemble": Kind(trained=True),
    "laplace": Kind(derived=True),
    "hyper_ensemble": Kind(
        trained=True,
        needs=(("hyper.cond", ("learned",)), ("condition.source", of_members())),
    ),
    "random_a": Kind(
        derived=True, draws=dropout.random_a, needs=(("hyper.a", ("random",)),)
    ),
}


def single_pass(settings: Settings) -> bool:
    """Whether logits come from one forward pass of one adapter, without averaging."""
    kind = choose(KINDS, settings.uncertainty.kind, "uncertainty.kind")
    return not (kind.trained or kind.derived)


Adapters = dict[int, Adapter]  # by trained member, made at the first prediction


def answerer(fitted: Fitted, posterior: laplace.Posterior | None = None) -> Answerer:
    """Return the function that predicts with a fitted model, by `uncertainty.kind`.

    A Laplace run without a posterior predicts like kind `none`, because the posterior
    is fitted around that model. The function raises NotFinite instead of an answer that
    is NaN or infinite.
    """
    own = _answerer(fitted, posterior)

    def answer(data: Dataset) -> Answer:
        found = own(data)
        check_outputs(found.logits, data.ids)
        if found.members is not None:
            check_outputs(found.members, data.ids)
        return found

    return answer


def _answerer(fitted: Fitted, posterior: laplace.Posterior | None) -> Answerer:
    settings, task = fitted.session.settings, fitted.session.task
    kind, samples = settings.uncertainty.kind, settings.uncertainty.samples
    if kind == "laplace" and posterior is not None:
        return _of_posterior(fitted, posterior)
    draw = None
    if build := choose(KINDS, kind, "uncertainty.kind").draws:
        config = fitted.session.base.config
        draw = build(settings, config, task, fitted.session.mesh)

    kept: list[Adapters] = [{} for _ in range(samples if draw else 1)]

    def answer(data: Dataset) -> Answer:
        forwards = [draw(k) for k in range(samples)] if draw else [fitted.forward]
        pairs = zip(forwards, kept, strict=True)
        parts = [_logits(fitted, forward, data, own) for forward, own in pairs]
        own_KNY = np.concatenate(parts)
        logits_NY, _ = ensembles.pool(settings, fitted.trainable, own_KNY)
        return Answer(logits_NY, own_KNY if len(own_KNY) > 1 else None)

    return answer


def _logits(
    fitted: Fitted, forward: Forward, data: Dataset, kept: Adapters
) -> np.ndarray:
    """Raw logits (K, N, Y) of the trained members; K = 1 if there are none."""
    settings, rest = (
        fitted.session.settings,
        (fitted.alpha, data, fitted.session.edges, kept),
    )
    return ensembles.split_logits(
        settings, forward, fitted.trainable, fitted.frozen, *rest
    )


def features(fitted: Fitted) -> Callable[[Dataset], np.ndarray]:
    """Return a function that gives the input (N, D) of the head's last layer.

    It is jitted and has no dropout.
    """
    parts, mesh = fitted.session.model.parts, fitted.session.mesh
    own_features = _features_of(fitted.session)

    def of_rows(params: Params, adapter: Adapter, batch: Batch) -> jax.Array:
        hidden_BTD = model.hidden(parts, params, adapter, batch, None)
        return own_features(params["head"], hidden_BTD)

    # whole on every device, so that each of several processes can read all rows
    of_rows = jax.jit(
        rules.over(mesh, of_rows),
        out_shardings=replicated(mesh),
        compiler_options=compiler.options(mesh),
    )
    # features take the place of logits, so that the loop over batches is the same
    forward = fitted.forward._replace(classify=of_rows)
    kept: Adapters = {}

    def found(data: Dataset) -> np.ndarray:
        phi_ND = _logits(fitted, forward, data, kept)[0]
        check_outputs(phi_ND, data.ids)
        return phi_ND

    return found


def check_kind(settings: Settings) -> None:
    """Check that the run's hyper-network supports its kind of uncertainty."""
    needs = KINDS[settings.uncertainty.kind].needs
    if not needs:
        return
    got = {path: operator.attrgetter(path)(settings) for path, _ in needs}
    found = [f"{path}={got[path]}" for path, some in needs if got[path] not in some]
    network = model.method(settings.method).network
    if network is None or found:
        wanted = " and ".join(f"{path}={' or '.join(some)}" for path, some in needs)
        methods = [name for name, m in model.METHODS.items() if m.network is not None]
        found.append(f"method={settings.method}")
        raise UserError(
            f"config.uncertainty.kind={settings.uncertainty.kind} needs {wanted} and "
            f"method={' or '.join(methods)}; got {', '.join(found)}"
        )


def check(session: Session, held_label_N: np.ndarray) -> None:
    """Check before training that a posterior can be fitted after it.

    Args:
      held_label_N: labels of the calibration split.

    Raises:
      UserError: a Laplace run is a regression, has no single last layer or one that is
        too wide, or has no calibration labels.
    """
    if session.settings.uncertainty.kind != "laplace":
        return
    if not session.model.objective.probabilistic:
        raise UserError(
            "config.uncertainty.kind=laplace needs classes, but the task is a "
            "regression, whose mean prediction it would not change; use mc_dropout or "
            "deep_ensemble"
        )
    _features_of(session)
    last = trees.union(session.trainable, session.frozen)["head"]["out"]
    features, classes = last["kernel"].shape
    laplace.check_size(features + 1, classes)
    if not has_label(held_label_N).any():
        raise UserError(
            "config.uncertainty.kind=laplace chooses its prior precision on the "
            "calibration split, which has no labels; expected labels there"
        )


def _features_of(session: Session) -> Features:
    """Return the function that computes the input of the head's last layer."""
    found, settings = session.model.parts.head.features, session.settings
    if found is None or settings.condition.sign:
        what = f"head.kind={settings.head.kind} has none"
        if settings.condition.sign:
            what = "condition.sign multiplies what it gives"
        raise UserError(
            "config.uncertainty.kind=laplace needs a head with one last layer, but "
            f"{what}; use kind=mc_dropout"
        )
    return found


def _last_layer(fitted: Fitted) -> np.ndarray:
    """Kernel of the head's last layer with the bias as last row, (D + 1, Y) float64."""
    last = trees.union(fitted.trainable, fitted.frozen)["head"]["out"]
    kernel, bias = (np.asarray(last[n], np.float64) for n in ("kernel", "bias"))
    return np.concatenate([kernel, bias[None]])


def fit_laplace(
    fitted: Fitted, train: Dataset, calibration: Dataset
) -> laplace.Posterior:
    """Fit the last layer's posterior on the training split, tau on the held-out one.

    Raises:
      UserError: as `check`.
    """
    check(fitted.session, calibration.label)
    mean_FY = _last_layer(fitted)
    of, keep = features(fitted), has_label(calibration.label)
    t = fitted.uncalibrated
    phi_NF, held_NF = (laplace.with_one(of(data), t) for data in (train, calibration))
    link = fitted.session.settings.uncertainty.link
    return laplace.fit(phi_NF, mean_FY, held_NF[keep], calibration.label[keep], t, link)


def _of_posterior(fitted: Fitted, state: laplace.Posterior) -> Answerer:
    of, uncertainty = features(fitted), fitted.session.settings.uncertainty
    seed = fitted.session.settings.seed

    def answer(data: Dataset) -> Answer:
        features_ND = of(data)
        if uncertainty.link != "mc":
            logits_NY = laplace.predict(state, features_ND, uncertainty.link)
            return Answer(logits_NY.astype(np.float32))
        own_KNY = laplace.draw(seed, state, features_ND, uncertainty.samples)
        own_KNY = own_KNY.astype(np.float32)
        logits_NY = pooling.pool(own_KNY, state.temperature)
        return Answer(logits_NY, own_KNY if len(own_KNY) > 1 else None)

    return answer


def with_kind(session: Session, config: UncertaintyConfig) -> Session:
    """The session of a trained run with another kind of uncertainty, for evaluation.

    Raises:
      UserError: the run's kind or the new one has to be trained.
    """
    for kind in (session.settings.uncertainty.kind, config.kind):
        if choose(KINDS, kind, "uncertainty.kind").trained:
            raise UserError(
                f"uncertainty.kind={kind} must be trained and cannot be chosen "
                f"afterwards; train a run with config.uncertainty.kind={kind}"
            )
    settings = dataclasses.replace(session.settings, uncertainty=config)
    check_kind(settings)
    return session._replace(settings=settings)


def about(config: UncertaintyConfig, answer: Answer) -> dict:
    """The entry `uncertainty` of metrics.json; {} for kind `none`."""
    if config.kind == "none":
        return {}
    out = {"kind": config.kind, "members": 1}
    if answer.members is not None:
        out["members"] = len(answer.members)
        out["disagreement"] = pooling.disagreement(answer.members)
    return {"uncertainty": out}
