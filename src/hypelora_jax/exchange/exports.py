"""A run as files that peft and transformers load: adapter or merged model, and card."""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hypelora_jax import families, model, trees
from hypelora_jax import files as files_lib
from hypelora_jax.adapters import lora
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.data.tokens import hugging_face_files
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.exchange import export_record
from hypelora_jax.interop import huggingface, peft
from hypelora_jax.model import Compact
from hypelora_jax.run.paths import Run
from hypelora_jax.train import ensembles
from hypelora_jax.types import MODULES, Params

FORMATS = ("peft", "merged")


class Adapted(NamedTuple):
    """One adapter: its compact factors, and the whole tree they belong to."""

    compact: Compact
    params: Params


def export(
    workdir: str,
    output: str,
    kind: str = "peft",
    calibrated: bool = False,
    only: Sequence[str] = (),
    cond: Any = None,
) -> list[epath.Path]:
    """Write a run as a peft adapter or a merged model; the folders written.

    A folder of seeds, an ensemble, and a hyper-network with several conditions give one
    folder for each below `output`: seed_0, ..., member_0, ..., condition_0, ...

    Args:
      workdir: run folder, or folder of seeds.
      output: folder that does not exist, or is empty.
      kind: "peft" or "merged".
      calibrated: divide the head's last layer by the fitted temperature.
      only: names of the folders wanted, of those below `output`; (): all.
      cond: conditioning vectors (S, C) or (K, S, C), where condition.source=given.

    Raises:
      UserError: an output that is not empty, a method or calibrator that cannot be
        exported this way, or a name that there is not.
    """
    if kind not in FORMATS:
        raise UserError(f"format is {kind!r}; wanted one of {', '.join(FORMATS)}")
    target = files_lib.absolute(output)
    files_lib.check_empty(target, "--output", output)
    path = Run.open(workdir)
    seeds = {} if path.config_file.exists() else _seeds(path)
    jobs = _chosen(seeds, only) if seeds else {"": str(path.path)}
    written = []
    for name, one in jobs.items():
        fitted = evaluation.open_fitted(one)
        _check_head(fitted)
        made = adapters(fitted, cond)
        if set(made) != {""}:
            made = _chosen(made, () if seeds else only)
        elif only and not seeds:
            raise UserError(f"{workdir} has one adapter; wanted no choice, got {only}")
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
        if name not in named:
            raise UserError(f"there is no {name!r}; wanted some of {', '.join(named)}")
    return {name: x for name, x in named.items() if not only or name in only}


def _check_head(fitted: Fitted) -> None:
    """Refuse a head that Hugging Face's classes of the family do not have."""
    session = fitted.session
    kind = families.head_kind(session.settings.head.kind, session.task)
    if kind not in session.family.heads:
        raise UserError(
            f"config.head.kind is {kind}, which transformers' {session.family.name} "
            f"does not have; wanted one of {', '.join(session.family.heads)}: such a "
            "run is used with hypelora predict and serve"
        )


def adapters(fitted: Fitted, cond: Any = None) -> dict[str, Adapted]:
    """Adapter of each member of an ensemble and each condition; "" where there is one.

    They are those of evaluation: alpha of the last finished step, the A of mode
    `random` that is kept, no dropout.
    """
    settings, out = fitted.session.settings, {}
    for k in range(ensembles.count(settings)):
        own = ensembles.member(settings, fitted.trainable, fitted.frozen, k)
        params = trees.union(*own)
        name = f"member_{k}" if ensembles.count(settings) > 1 else ""
        for part, compact in _conditions(fitted, params, cond).items():
            key = "_".join(n for n in (name, part) if n)
            out[key] = Adapted(compact, params)
    return out


def _conditions(fitted: Fitted, params: Params, cond: Any) -> dict[str, Compact]:
    """Compact factors of each condition, by name; one condition has the name ""."""
    parts = fitted.session.model.parts
    if parts.hyper is None or parts.cond is None:
        return {"": model.compact(parts, params, {}, fitted.alpha)}
    given = {} if cond is None else {"cond": jnp.asarray(cond)}
    conds = parts.cond.apply(params.get("cond", {}), given).vectors
    network = parts.hyper
    write = jax.jit(lambda hyper, c: network.apply(hyper, c, fitted.alpha, None))
    static = [(parts.lora_sites, params["lora"])] if parts.lora_sites else []

    def one(c: jax.Array) -> Compact:
        return [(parts.hyper_sites, write(params["hyper"], c)), *static]

    if conds.ndim == 2:
        return {"": one(conds)}
    return {f"condition_{k}": one(c) for k, c in enumerate(conds)}


def _head(fitted: Fitted, params: Params, calibrated: bool) -> Params:
    """The head as it is written: on the host, divided by the temperature if wanted."""
    head = jax.tree.map(np.asarray, params["head"])
    if not calibrated:
        return head
    if not fitted.session.model.objective.probabilistic:
        raise UserError("--calibrated wants a classification; this run is a regression")
    divisor, kind = export_record.temperature_of(fitted)
    if (averages := fitted.session.settings.uncertainty.kind) != "none":
        raise UserError(
            f"the run's calibrator is fitted to predictions averaged by {averages}; "
            "one member alone is not calibrated by it: export without --calibrated"
        )
    if divisor is None:
        raise UserError(
            f"the run's calibrator is {kind!r}, which no division of the head's last "
            "layer can do; wanted a temperature: hypelora calibrate "
            "--method=temperature, or export without --calibrated"
        )
    if not kind:
        raise UserError(
            "no temperature was fitted for this run; wanted calibrator.json in its "
            "folder: run hypelora calibrate first, or export without --calibrated"
        )
    out = {n: (x.astype(np.float64) / divisor) for n, x in head["out"].items()}
    return head | {"out": {n: x.astype(np.float32) for n, x in out.items()}}


def _whole(target: epath.Path, write: Callable[[epath.Path], None]) -> None:
    """Write one folder, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(part)
        if target.exists():
            target.rmdir()  # empty, or this fails
        part.rename(target)
    except BaseException:
        if part.exists():
            part.rmtree()  # ours, made above
        raise


def _write(
    name: str,
    fitted: Fitted,
    adapted: Adapted,
    kind: str,
    calibrated: bool,
    part: epath.Path,
) -> None:
    """Write the files of one folder; `name` is its path as the user says it."""
    session, (compact, params) = fitted.session, adapted
    head, base = _head(fitted, params, calibrated), session.base
    part.mkdir(parents=True)
    if kind == "merged":
        _merged(part, fitted, compact, {**params, "head": head})
    else:
        if not session.model.parts.hyper_sites and not session.model.parts.lora_sites:
            raise UserError(
                f"method {session.settings.method} trains no adapter; wanted "
                "--format=merged for it"
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
    export_record.write_record(part, fitted, kind, calibrated)
    export_record.write_card(part, name, fitted, kind, calibrated)


def _all_sites(compact: Compact) -> Sites:
    """All adapted sites, each module's layers in ascending order."""
    out: Sites = {}
    for sites, _ in compact:
        for module, site in sites.items():
            held = out[module].layers if module in out else ()
            out[module] = site._replace(layers=tuple(sorted((*held, *site.layers))))
    return {m: out[m] for m in MODULES if m in out}


def _merged(part: epath.Path, fitted: Fitted, compact: Compact, params: Params) -> None:
    session = fitted.session
    parts = session.model.parts
    placed = lora.fold(lora.place(compact, parts.num_layers), parts.scale)
    backbone = jax.jit(lora.merge)(params["backbone"], placed)
    tree = {"backbone": backbone, "head": params["head"]}
    labels = session.task.labels or None
    huggingface.save_model(part, session.base.config, tree, labels=labels)
