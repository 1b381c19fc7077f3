"""Several runs that share one backbone: one copy of its weights and of its programs.

The adapter and the head are arguments of the compiled programs, so runs whose adapters
have the same shapes share the programs, and a further such run compiles nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.inference.predictor import Predictor, load
from hypelora_jax.run import records
from hypelora_jax.run.paths import unique_names
from hypelora_jax.types import Params

AdapterPool = dict[str, Predictor]  # by name; the first is the default
Programs = dict[tuple, Callable]  # (sizes, dtype, outputs) -> `classify`


def open_pool(
    workdirs: Sequence[str], batch_sizes: Sequence[int], **options: Any
) -> AdapterPool:
    """Load runs by name; all get the lengths T of the run with the longest texts.

    Args:
      workdirs: folders of trained or imported runs of one base model.
      batch_sizes: rows of the compiled batches.
      options: `coverage`, `sets`, `by_class` and `abstain` of `inference.load`.

    Raises:
      UserError: a run does not exist or is named twice, or the runs cannot share a
        backbone.
    """
    names = names_of(workdirs)
    _check_same_base(names)
    pool: AdapterPool = {}
    programs: Programs = {}
    first = None
    for name, workdir in names.items():
        predictor = load(workdir, batch_sizes=batch_sizes, **options)
        first = first or predictor
        pool[name] = _sharing(first, predictor, programs, alone=len(names) == 1)
    edges = max((one.edges for one in pool.values()), key=lambda edges: edges[-1])
    return {name: _with_edges(one, edges) for name, one in pool.items()}


def names_of(workdirs: Sequence[str]) -> dict[str, str]:
    """Return {name: folder}; a name is the shortest end of the path that is unique.

    Raises:
      UserError: the same folder is given twice.
    """
    twice = "--workdir={} is given twice; expected each run once"
    return dict(zip(unique_names(workdirs, twice), workdirs, strict=True))


def _check_same_base(names: dict[str, str]) -> None:
    """Refuse runs with different base weights, by config.json, before loading any."""
    models = {n: records.open_record(w)[1]["model"] for n, w in names.items()}
    (first, wanted), *others = models.items()
    for name, model in others:
        if model["sha256"] != wanted["sha256"]:
            raise UserError(_other_base(first, wanted["name"], name, model["name"]))


def _other_base(first: str, base: str, name: str, other: str) -> str:
    return (
        f"{name} adapts {other} and {first} adapts {base}, with other weights; "
        "expected runs of one base model. Serve each in a process of its own"
    )


def _sharing(
    first: Predictor, predictor: Predictor, programs: Programs, alone: bool
) -> Predictor:
    """Return the predictor with the backbone and the programs of the first one."""
    fitted, session = predictor.fitted, predictor.fitted.session
    if "backbone" not in fitted.frozen:  # it was trained and is not shared
        if alone:
            return predictor
        raise UserError(
            f"{fitted.run.path} was fine-tuned in full, so it cannot share a backbone "
            "with other runs; serve it alone"
        )
    if session.mesh != first.fitted.session.mesh:
        raise UserError(
            f"{fitted.run.path} needs the mesh {dict(session.mesh.shape)} and "
            f"{first.fitted.run.path} needs {dict(first.fitted.session.mesh.shape)}; "
            "expected runs with one mesh"
        )
    if predictor is not first and not session.base.folder:
        _check_same_arrays(first, predictor)
    key = (session.base.config, session.settings.model.dtype, session.task.num_outputs)
    if key not in programs:
        programs[key] = _narrowed(fitted.forward.classify)
    frozen = {**fitted.frozen, "backbone": first.fitted.frozen["backbone"]}
    # The parameters from before training are not used here, so their memory is freed.
    fitted = fitted._replace(
        session=session._replace(frozen={}, trainable={}),
        forward=fitted.forward._replace(classify=programs[key]),
        frozen=frozen,
    )
    return predictor._replace(fitted=fitted)


def _check_same_arrays(first: Predictor, other: Predictor) -> None:
    """Refuse random weights that differ; they have no sha256, so compare the arrays."""
    pair = [one.fitted.frozen["backbone"] for one in (first, other)]
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in pair]
    same = shapes[0] == shapes[1] and jax.tree.all(jax.tree.map(np.array_equal, *pair))
    if not same:
        both = [one.fitted for one in (first, other)]
        names = [(str(fitted.run.path), fitted.session.base.name) for fitted in both]
        raise UserError(_other_base(*names[0], *names[1]))


def _narrowed(classify: Callable) -> Callable:
    """Pass `classify` only what it reads, so that all methods can share its program."""

    def of_rows(params: Params, lora: Any, rows: Any) -> jax.Array:
        return classify({n: params[n] for n in ("backbone", "head")}, lora, rows)

    return of_rows


def _with_edges(predictor: Predictor, edges: tuple[int, ...]) -> Predictor:
    """Return the predictor with these lengths; longer padding changes no answer."""
    answerers = {
        rows: evaluation.answerer(predictor.fitted, edges, rows)
        for rows in predictor.answerers
    }
    return predictor._replace(edges=edges, answerers=answerers)
