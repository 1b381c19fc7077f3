"""Several runs that share one backbone: one copy of its weights and of its programs.

The adapter and the head are arguments of the compiled programs, so runs whose adapters
have the same shapes share the programs, and a further such run compiles nothing. Such
runs share a bank, too, and then also batches. A run that is alone has merged weights,
and its texts share the rows of a batch.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.inference.bank import Bank, Entry, entries_of
from hypelora_jax.inference.predictor import Predictor, load
from hypelora_jax.inference.single_run import merged, packed
from hypelora_jax.run import records
from hypelora_jax.run.paths import unique_names
from hypelora_jax.types import Params

AdapterPool = dict[str, Predictor]  # by name; the first is the default
Record = dict[str, Any]  # config.json of a run
Entries = dict[str, Entry]  # of the runs that are in a bank, by name
Programs = dict[tuple, Callable]  # `classify` by the result of `_program`


def open_pool(
    workdirs: Sequence[str],
    batch_sizes: Sequence[int],
    swaps: bool = False,
    **options: Any,
) -> AdapterPool:
    """Load runs by name; all get the lengths T of the run with the longest texts.

    Args:
      workdirs: folders of trained or imported runs of one base model.
      batch_sizes: rows of the compiled batches.
      swaps: runs may be added later, so a single run is not merged with the backbone.
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
    alone = len(pool) == 1 and not swaps
    if alone:
        pool = {name: merged(one) for name, one in pool.items()}
    edges = max((one.edges for one in pool.values()), key=lambda edges: edges[-1])
    pool = {name: _with_edges(one, edges) for name, one in pool.items()}
    return {name: packed(one) for name, one in pool.items()} if alone else pool


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
    key = _program(predictor)
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


def _program(predictor: Predictor) -> tuple:
    """Return what decides the program that classifies, besides shapes."""
    session, parts = predictor.fitted.session, predictor.fitted.session.model.parts
    sites = (*parts.hyper_sites.values(), *parts.lora_sites.values())
    # below the lowest adapted layer the program has no factors
    lowest = min((layer for site in sites for layer in site.layers), default=0)
    config, head = session.settings, session.settings.head.kind
    own = (config.model.dtype, session.task.kind, session.task.num_outputs, head)
    return (session.base.config, lowest, *own)


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


def in_banks(pool: AdapterPool, max_loras: int, swaps: bool = False) -> Entries:
    """Put the runs that can share a batch into banks, one for each shape.

    Args:
      pool: the runs.
      max_loras: the most runs that a bank has on the device at once.
      swaps: runs may be added later, so that a single run has a bank, too.
    """
    if len(pool) == 1 and not swaps:
        return {}
    return entries_of(pool, _program, max_loras, swaps)


@dataclasses.dataclass(frozen=True)
class AdapterSource:
    """The runs below a local folder, which may be added to a service."""

    path: Path  # absolute, without symbolic links
    options: dict[str, Any]  # `coverage`, `sets`, `by_class`, `abstain`
    likes: tuple[tuple[Entry, Record], ...] = ()  # runs that others must be like

    @classmethod
    def open(cls, path: str, options: dict[str, Any]) -> "AdapterSource":
        """Return the folder of that path.

        Raises:
          UserError: there is no such folder.
        """
        if not Path(path).is_dir():
            raise UserError(
                f"--lora_dir is {path}; expected a local folder that exists"
            )
        return cls(Path(path).resolve(), options)

    def knowing(self, entries: Entries) -> "AdapterSource":
        """Return the folder with runs that others must be like."""
        paths = {one: str(one.predictor.fitted.run.path) for one in entries.values()}
        known = ((one, records.open_record(path)[1]) for one, path in paths.items())
        return dataclasses.replace(self, likes=tuple(known))

    def load(self, given: str) -> tuple[Predictor, Bank]:
        """Load a run without compiling; return it, and the bank that it fits.

        Args:
          given: path of the run, relative to the folder.

        Raises:
          UserError: there is no such run below the folder, it is like none of `likes`,
            or its texts are longer than theirs.
        """
        try:
            return self._load(self._inside(given), given)
        except OSError as e:
            raise UserError(
                f"{given} cannot be read: {e.strerror or e}; expected a finished run "
                "that this service may read"
            ) from e
        except UserError as e:  # the one who asks need not know where the folder is
            raise UserError(str(e).replace(f"{self.path}{os.sep}", "")) from e

    def _load(self, path: Path, given: str) -> tuple[Predictor, Bank]:
        record, why = records.open_record(str(path))[1], ""
        for like, known in self.likes:
            fitted = like.predictor.fitted
            if not (found := evaluation.difference(record, fitted, known)):
                return self._open(path, given, like), like.bank
            why = why or found
        raise UserError(
            f"{given} is like no run that the service was started with: {why}; start "
            "the service with it"
        )

    def _open(self, path: Path, given: str, like: Entry) -> Predictor:
        found = load(str(path), like=like.predictor.fitted, **self.options)
        length = found.fitted.session.settings.data.max_length
        if length > like.predictor.edges[-1]:
            raise UserError(
                f"{given} reads {length} tokens (data.max_length), but the service was "
                f"compiled for {like.predictor.edges[-1]}; start the service with it"
            )
        return found._replace(edges=like.predictor.edges)

    def _inside(self, given: str) -> Path:
        """Return the path of a run, no part of which leaves the folder.

        Raises:
          UserError: it leaves the folder, or does not exist.
        """
        try:
            path = (self.path / given).resolve()
            plain = ".." not in Path(given).parts and not os.path.isabs(given)
            if plain and path.is_dir() and path != self.path and self._holds(path):
                return path
        except (OSError, ValueError):  # no path at all: NUL, surrogates, too long
            pass
        raise UserError(
            f"lora_path is {given[:60]!r}; expected the name of a run's folder below "
            "that of --lora_dir, without .. and without links that leave it"
        )

    def _holds(self, path: Path) -> bool:
        """Whether a path, and all files below it, are in the folder."""
        inside = [path]
        for folder, folders, names in os.walk(path):
            inside += [Path(folder, name).resolve() for name in (*folders, *names)]
        return all(one.is_relative_to(self.path) for one in inside)
