"""Several runs behind one backbone: its weights once, its programs once.

The adapter and the head are arguments of the compiled programs, so runs whose adapters
have the same shapes run the same programs, and a further one compiles nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.inference import predictor
from hypelora_jax.inference.predictor import Loaded
from hypelora_jax.run import records
from hypelora_jax.run.paths import unique_names
from hypelora_jax.types import Params

Shelf = dict[str, Loaded]  # by name; the first one answers where none is asked for
Programs = dict[tuple, Callable]  # `classify` of a Forward, by what it is built from


def open_all(workdirs: Sequence[str], batch_sizes: Sequence[int], **how: Any) -> Shelf:
    """Runs by name, ready to answer, all with the lengths T of the longest.

    Args:
      workdirs: of trained or imported runs of one base model.
      how: `coverage`, `sets`, `by_class` and `abstain` of `inference.loaded.load`.

    Raises:
      UserError: no such run, the same one twice, or runs that cannot share a backbone.
    """
    names = names_of(workdirs)
    _check_same_base(names)
    out, programs, first = {}, {}, None
    for name, workdir in names.items():
        own = predictor.load(workdir, batch_sizes=batch_sizes, **how)
        first = first or own
        out[name] = _behind(first, own, programs, alone=len(names) == 1)
    edges = max((one.edges for one in out.values()), key=lambda edges: edges[-1])
    return {name: _with_edges(one, edges) for name, one in out.items()}


def names_of(workdirs: Sequence[str]) -> dict[str, str]:
    """{name: folder}: the last part of each path, or as many as tell them apart.

    Raises:
      UserError: the same folder twice.
    """
    twice = "--workdir={} stands there twice; wanted each run once"
    return dict(zip(unique_names(workdirs, twice), workdirs, strict=True))


def _check_same_base(names: dict[str, str]) -> None:
    """Refuse runs of different weights, from config.json, before any is loaded."""
    models = {n: records.open_record(w)[1]["model"] for n, w in names.items()}
    (first, wanted), *others = models.items()
    for name, model in others:
        if model["sha256"] != wanted["sha256"]:
            raise UserError(_other_base(first, wanted["name"], name, model["name"]))


def _other_base(first: str, base: str, name: str, other: str) -> str:
    return (
        f"{name} adapts {other} and {first} adapts {base}, with other weights; wanted "
        "runs of one base model: serve each in a process of its own"
    )


def _behind(first: Loaded, own: Loaded, programs: Programs, alone: bool) -> Loaded:
    """The run with the backbone and the programs of the first one."""
    run, bench = own.run, own.run.bench
    if "backbone" not in run.frozen:
        if alone:
            return own
        raise UserError(
            f"{run.workdir} was fine-tuned in full: its backbone is its own; wanted "
            "adapters beside each other: serve it alone"
        )
    if bench.mesh != first.run.bench.mesh:
        raise UserError(
            f"{run.workdir} wants the mesh {dict(bench.mesh.shape)} and "
            f"{first.run.workdir} {dict(first.run.bench.mesh.shape)}; wanted one mesh"
        )
    shared = first.run.frozen["backbone"]
    if own is not first and not bench.base.folder:
        _check_same_arrays(first, own)
    settings = bench.settings
    key = (bench.base.config, settings.model.dtype, bench.task.num_outputs)
    if key not in programs:
        programs[key] = _narrowed(run.forward.classify)
    frozen = {**run.frozen, "backbone": shared}
    bench = bench._replace(frozen={}, trainable={})  # those before training: not used
    forward = run.forward._replace(classify=programs[key])
    return own._replace(run=run._replace(bench=bench, forward=forward, frozen=frozen))


def _check_same_arrays(first: Loaded, own: Loaded) -> None:
    """Refuse random weights that were drawn otherwise: they come from no file."""
    pair = [one.run.frozen["backbone"] for one in (first, own)]
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in pair]
    same = shapes[0] == shapes[1] and jax.tree.all(jax.tree.map(np.array_equal, *pair))
    if not same:
        names = [(str(x.run.workdir), x.run.bench.base.name) for x in (first, own)]
        raise UserError(_other_base(*names[0], *names[1]))


def _narrowed(classify: Callable) -> Callable:
    """`classify` given what it reads alone: the same arguments for every method."""

    def of_rows(params: Params, lora: Any, rows: Any) -> jax.Array:
        return classify({n: params[n] for n in ("backbone", "head")}, lora, rows)

    return of_rows


def _with_edges(own: Loaded, edges: tuple[int, ...]) -> Loaded:
    """The run answering with these lengths; a length is padding and changes nothing."""
    answerers = {
        rows: evaluation.answerer(own.run, edges, rows) for rows in own.answerers
    }
    return own._replace(edges=edges, answerers=answerers)
