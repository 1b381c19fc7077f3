"""Exports a run for peft or transformers: adapter or merged model, and model card."""

import functools
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hypelora_jax import families, model, trees
from hypelora_jax import files as files_lib
from hypelora_jax.adapters import lora, sign
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.data.conditions import Vectors, read
from hypelora_jax.data.tokens import hugging_face_files
from hypelora_jax.errors import UserError, choose
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.exchange import export_record
from hypelora_jax.interop import huggingface, peft
from hypelora_jax.model import Compact
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import ensembles
from hypelora_jax.types import MODULES, Batch, Lora, Params

FORMATS = ("peft", "merged")


class Adapted(NamedTuple):
    """One adapter: its compact factors, and the whole tree they belong to.

    `condition` has the name and vector of the adapter's condition, or is None.
    """

    compact: Compact
    params: Params
    condition: dict[str, Any] | None = None


def export(
    workdir: str,
    output: str,
    kind: str = "peft",
    calibrated: bool = False,
    only: Sequence[str] = (),
    conditions: Mapping[str, np.ndarray] | None = None,
) -> list[epath.Path]:
    """Write a run as a peft adapter or a merged model, and return the folders.

    Each seed, each member of an ensemble, and each condition gets a folder below
    `output`: seed_0, ..., member_0, ..., or the condition's name.

    Args:
      workdir: run folder, or folder of seeds.
      output: folder that does not exist or is empty.
      kind: "peft" or "merged".
      calibrated: divide the head's last layer by the fitted temperature.
      only: names of the folders to write below `output`; () writes all.
      conditions: vectors (C,) or (S, C) by name, if the run's data give conditions;
        None takes those of its condition.file.

    Raises:
      UserError: the output is not empty, the method or calibrator cannot be exported
        this way, or `only` has an unknown name.
    """
    if kind not in FORMATS:
        raise UserError(f"format is {kind!r}; expected one of {', '.join(FORMATS)}")
    target = files_lib.absolute(output)
    files_lib.check_empty(target, "--output", output)
    path = Run.open(workdir)
    seeds = {} if path.config_file.exists() else _seeds(path)
    jobs = _chosen(seeds, only) if seeds else {"": str(path.path)}
    written = []
    for name, one in jobs.items():
        fitted = evaluation.open_fitted(one)
        _check_head(fitted)
        made = adapters(fitted, conditions)
        if set(made) != {""}:
            made = _chosen(made, () if seeds else only)
        elif only and not seeds:
            raise UserError(
                f"{workdir} has one adapter, so there is no choice; leave --only out"
            )
        for part, adapted in made.items():
            names = [n for n in (name, part) if n]
            last = target.joinpath(*names)
            about = ("/".join([output, *names]), fitted, adapted, kind, calibrated)
            _whole(last, functools.partial(_write, *about))
            written.append(last)
    return written


def _seeds(path: Run) -> dict[str, str]:
    return {r.name: str(r.path) for r in path.seeds() if r.config_file.exists()}


def _chosen(named: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    for name in only:
        choose(named, name, "--only")
    return {name: x for name, x in named.items() if not only or name in only}


def _check_head(fitted: Fitted) -> None:
    """Check that Hugging Face's classes of the family have the run's head."""
    session = fitted.session
    kind = families.head_kind(session.settings.head.kind, session.task)
    if kind not in session.family.heads:
        raise UserError(
            f"config.head.kind is {kind}, which transformers' {session.family.name} "
            f"does not have; expected one of {', '.join(session.family.heads)}. Use "
            "such a run with hypelora predict and serve"
        )


def adapters(
    fitted: Fitted, conditions: Mapping[str, np.ndarray] | None = None
) -> dict[str, Adapted]:
    """Adapters by names of member and condition; "" for a run with neither.

    They are the adapters that evaluation uses, with alpha of the last finished step,
    the stored A in mode `random`, and no dropout.

    Raises:
      UserError: conditions are given and the run reads none, or they are missing.
    """
    settings, parts = fitted.session.settings, fitted.session.model.parts
    named, out = _named(fitted, conditions), {}

    @jax.jit
    def write(params: Params, batch: Batch) -> tuple[list[Lora], Params]:
        found = model.conditions(parts, params, batch)
        made = model.compact(parts, params, found, fitted.alpha)
        return [x for _, x in made], sign.of_head(params["head"], found)

    sites = [s for s in (parts.hyper_sites, parts.lora_sites) if s]
    for k in range(ensembles.count(settings)):
        own = ensembles.member(settings, fitted.trainable, fitted.frozen, k)
        params = trees.union(*own)
        adapts = {n: x for n, x in params.items() if n != "backbone"}
        name = f"member_{k}" if ensembles.count(settings) > 1 else ""
        for part, batch in named.items():
            key = "_".join(n for n in (name, part) if n)
            lora, head = write(adapts, batch)
            made = zip(sites, lora, strict=True)
            vectors = [np.asarray(x[0]).tolist() for x in batch.values()]
            about = {"name": part, "vector": vectors[0]} if vectors else None
            out[key] = Adapted(list(made), {**params, "head": head}, about)
    return out


def _named(
    fitted: Fitted, conditions: Mapping[str, np.ndarray] | None
) -> dict[str, Batch]:
    """Inputs of `adapt` by name of the condition; {"": {}} if it reads none.

    The names become folders, so they must not be paths to other places.
    """
    settings, reads = fitted.session.settings, fitted.session.model.reads
    if not reads and conditions is None:
        return {"": {}}
    if not reads:
        raise UserError("this run reads no conditions; leave --conditions out")
    if reads != ("condition", "row"):
        raise UserError(
            f"condition.source={settings.condition.source} of this run reads more than "
            "vectors, so there is no single adapter; use hypelora predict and serve"
        )
    if conditions is None and not settings.condition.file:
        raise UserError(
            "each example of this run has a condition; expected --conditions=FILE.npz "
            "with ids and vectors, one for each adapter to write"
        )
    where = "--conditions" if conditions else settings.condition.file
    conditions = read(where) if conditions is None else conditions
    condition = records.open_record(str(fitted.run.path))[1].get("condition", {})
    reader = Vectors(ConditionConfig(), tuple(condition.get("shape", ())))
    out: dict[str, Batch] = {}
    for name, vector in conditions.items():
        if what := reader.fault(vector):
            raise UserError(f"{where}, {name}: {what}")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(
                f"the condition {name!r} cannot name a folder; expected letters, "
                "digits, '_', '.' and '-', with neither '.' nor '-' first"
            )
        out[name] = {"condition": jnp.asarray(vector, jnp.float32)[None]}
    return out


def _whole(target: epath.Path, write: Callable[[epath.Path], None]) -> None:
    """Write one folder, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(part)
        if target.exists():
            target.rmdir()  # fails unless the folder is empty
        part.rename(target)
    except BaseException:
        if part.exists():
            part.rmtree()  # this call created it
        raise


def _write(
    name: str,
    fitted: Fitted,
    adapted: Adapted,
    kind: str,
    calibrated: bool,
    part: epath.Path,
) -> None:
    """Write the files of one folder; `name` is its path as the user gave it."""
    session, (compact, params, condition) = fitted.session, adapted
    head, base = export_record.head_of(fitted, params, calibrated), session.base
    part.mkdir(parents=True)
    if kind == "merged":
        _merged(part, fitted, compact, {**params, "head": head})
    else:
        if not session.model.parts.hyper_sites and not session.model.parts.lora_sites:
            raise UserError(
                f"method {session.settings.method} trains no adapter; expected "
                "--format=merged"
            )
        where = base.name
        if base.folder is None:  # random weights: peft needs them in a folder
            huggingface.save_model(
                part / "base", base.config, {"backbone": params["backbone"]}
            )
            where = f"{name}/base"
        tensors, ranks = peft.to_peft(base.config, compact, head)
        sites = _all_sites(compact)
        fields = peft.make_config(
            session.settings.lora, sites, ranks, base.config, where, base.revision
        )
        peft.write(part, fields, tensors)
    length = session.settings.data.max_length
    files = hugging_face_files(
        session.tokenizer, families.of(base.config).tokens, length
    )
    for where in (part, part / "base"):
        for file, text in files.items() if where.exists() else ():
            files_lib.write_whole(where / file, text)
    export_record.write_record(part, fitted, kind, calibrated, condition)
    export_record.write_card(part, name, fitted, kind, calibrated)


def _all_sites(compact: Compact) -> Sites:
    """All adapted sites, with each module's layers in ascending order."""
    out: Sites = {}
    for sites, _ in compact:
        for module, site in sites.items():
            layers = out[module].layers if module in out else ()
            out[module] = site._replace(layers=tuple(sorted((*layers, *site.layers))))
    return {m: out[m] for m in MODULES if m in out}


def _merged(part: epath.Path, fitted: Fitted, compact: Compact, params: Params) -> None:
    session = fitted.session
    parts = session.model.parts
    placed = lora.fold(lora.place(compact, parts.num_layers), parts.scale)
    backbone = jax.jit(lora.merge)(params["backbone"], placed)
    tree = {"backbone": backbone, "head": params["head"]}
    labels = session.task.labels or None
    huggingface.save_model(part, session.base.config, tree, labels=labels)
