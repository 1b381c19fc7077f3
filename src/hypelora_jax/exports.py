"""A run as files that peft and transformers load: adapter or merged model, and card."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hypelora_jax import evaluate, folder, lora, store, trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.data.tokenize import hugging_face_files
from hypelora_jax.evaluate import Fitted
from hypelora_jax.interop import hf, peft
from hypelora_jax.lora import Sites
from hypelora_jax.report import card as cards
from hypelora_jax.train import validate
from hypelora_jax.types import MODULES, Lora, Params, UserError

FORMATS = ("peft", "merged")
NOTE = "hypelora.json"  # what `import` reads to make a whole run again
Compact = list[tuple[Sites, Lora]]


def export(
    workdir: str,
    output: str,
    kind: str = "peft",
    calibrated: bool = False,
    only: Sequence[str] = (),
    cond: Any = None,
) -> list[epath.Path]:
    """Write a run as a peft adapter or a merged model; the folders written.

    A folder of seeds, and a hyper-network with several conditions, give one folder for
    each below `output`: seed_0, ..., condition_0, ...

    Args:
      workdir: run folder, or folder of seeds.
      output: folder that does not exist, or is empty.
      kind: "peft" or "merged".
      calibrated: divide the head's last layer by the fitted temperature.
      only: names of the folders wanted, of those below `output`; (): all.
      cond: conditioning vectors (S, C) or (K, S, C), for runs with hyper.cond=given.

    Raises:
      UserError: an output that is not empty, a method or calibrator that cannot be
        exported this way, or a name that there is not.
    """
    if kind not in FORMATS:
        raise UserError(f"format is {kind!r}; wanted one of {', '.join(FORMATS)}")
    target = _free(output)
    path = folder.absolute(workdir)
    seeds = {} if (path / "config.json").exists() else _seeds(path)
    jobs = _chosen(seeds, only) if seeds else {"": str(path)}
    written = []
    for name, one in jobs.items():
        run = evaluate.open_run(one)
        made = adapters(run, cond)
        if set(made) != {""}:
            made = _chosen(made, () if seeds else only)
        elif only and not seeds:
            raise UserError(f"{workdir} has one adapter; wanted no choice, got {only}")
        for part, compact in made.items():
            names = [n for n in (name, part) if n]
            last = target.joinpath(*names)
            _whole(last, "/".join([output, *names]), run, compact, kind, calibrated)
            written.append(last)
    return written


def _free(output: str) -> epath.Path:
    """The output folder as a path; refused where something is in it."""
    path = folder.absolute(output)
    if path.exists() and not path.is_dir():
        raise UserError(f"{output} is a file; wanted a folder that is not there yet")
    if path.exists() and any(path.iterdir()):
        raise UserError(
            f"{output} is not empty; nothing there is overwritten: choose another "
            "--output, or empty it yourself"
        )
    return path


def _seeds(path: epath.Path) -> dict[str, str]:
    found = [p for p in path.glob("seed_*") if (p / "config.json").exists()]
    found.sort(key=lambda p: (len(p.name), p.name))
    return {p.name: str(p) for p in found}


def _chosen(named: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    for name in only:
        if name not in named:
            raise UserError(f"there is no {name!r}; wanted some of {', '.join(named)}")
    return {name: x for name, x in named.items() if not only or name in only}


def adapters(run: Fitted, cond: Any = None) -> dict[str, Compact]:
    """Compact factors of each condition, by name; one condition has the name "".

    They are those of evaluation: alpha of the last finished step, the A of mode
    `random` that is kept, no dropout.
    """
    parts = run.bench.model.parts
    params = trees.union(run.trainable, run.frozen)
    if parts.hyper is None:
        return {"": run.bench.model.predictor.compact(params, {}, run.alpha)}
    given = {} if cond is None else {"cond": jnp.asarray(cond)}
    conds = parts.cond.apply(params.get("cond", {}), given)
    write = jax.jit(lambda hyper, c: parts.hyper.apply(hyper, c, run.alpha, None))
    static = [(parts.lora_sites, params["lora"])] if parts.lora_sites else []

    def one(c: jax.Array) -> Compact:
        return [(parts.hyper_sites, write(params["hyper"], c)), *static]

    if conds.ndim == 2:
        return {"": one(conds)}
    return {f"condition_{k}": one(c) for k, c in enumerate(conds)}


def temperature_of(run: Fitted) -> tuple[float | None, str]:
    """(what divides the logits, kind of calibrator); None: it is no temperature.

    The kind is "" where nothing was fitted or learned.
    """
    file = run.workdir / "calibrator.json"
    learned = validate.train_temperature(run.trainable)
    if not file.exists():
        return learned, "temperature" if learned != 1 else ""
    state = calibrators.from_json(file.read_text())
    kind = json.loads(file.read_text())["kind"]
    if isinstance(state, calibrators.Temperature):
        return state.temperature, kind
    return (1.0, "") if isinstance(state, calibrators.Identity) else (None, kind)


def _head(run: Fitted, params: Params, calibrated: bool) -> Params:
    """The head as it is written: on the host, divided by the temperature if wanted."""
    head = jax.tree.map(np.asarray, params["head"])
    if not calibrated:
        return head
    if run.bench.task.kind == "regression":
        raise UserError("--calibrated wants a classification; this run is a regression")
    divisor, kind = temperature_of(run)
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


def _whole(
    target: epath.Path,
    name: str,
    run: Fitted,
    compact: Compact,
    kind: str,
    calibrated: bool,
) -> None:
    """Write one folder, which appears whole or not at all; `name` as the user says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        _write(part, name, run, compact, kind, calibrated)
        if target.exists():
            target.rmdir()  # empty, or this fails
        part.rename(target)
    except BaseException:
        if part.exists():
            part.rmtree()  # ours, made above
        raise


def _write(
    part: epath.Path,
    name: str,
    run: Fitted,
    compact: Compact,
    kind: str,
    calibrated: bool,
) -> None:
    bench, params = run.bench, trees.union(run.trainable, run.frozen)
    head, base = _head(run, params, calibrated), bench.base
    part.mkdir(parents=True)
    if kind == "merged":
        _merged(part, run, compact, {**params, "head": head})
    else:
        if not bench.model.parts.hyper_sites and not bench.model.parts.lora_sites:
            raise UserError(
                f"method {bench.settings.method} trains no adapter; wanted "
                "--format=merged for it"
            )
        where = base.name
        if base.folder is None:  # random weights: peft needs them in a folder
            hf.save_folder(part / "base", base.config, {"backbone": params["backbone"]})
            where = f"{name}/base"
        tensors, ranks = peft.to_peft(base.config, compact, head)
        sites = _all_sites(compact)
        fields = peft.make_config(
            bench.settings.lora, sites, ranks, base.config, where, base.revision
        )
        peft.write(part, fields, tensors)
    length = bench.settings.data.max_length
    files = hugging_face_files(bench.tokenizer, base.config.family, length)
    for where in (part, part / "base"):
        for file, text in files.items() if where.exists() else ():
            store.write_whole(where / file, text)
    _note(part, run, kind, calibrated)
    _card(part, name, run, kind, calibrated)


def _all_sites(compact: Compact) -> Sites:
    """All adapted sites, each module's layers in ascending order."""
    out: Sites = {}
    for sites, _ in compact:
        for module, site in sites.items():
            held = out[module].layers if module in out else ()
            out[module] = site._replace(layers=tuple(sorted((*held, *site.layers))))
    return {m: out[m] for m in MODULES if m in out}


def _merged(part: epath.Path, run: Fitted, compact: Compact, params: Params) -> None:
    bench = run.bench
    parts = bench.model.parts
    placed = lora.fold(lora.place(compact, parts.num_layers), parts.scale)
    backbone = jax.jit(lora.merge)(params["backbone"], placed)
    tree = {"backbone": backbone, "head": params["head"]}
    labels = bench.task.labels or None
    hf.save_folder(part, bench.base.config, tree, labels=labels)


def _note(part: epath.Path, run: Fitted, kind: str, calibrated: bool) -> None:
    record = folder.saved_record(run.workdir)
    file, fitted = run.workdir / "calibrator.json", None
    if file.exists() and not calibrated:
        fitted = json.loads(file.read_text())
    elif not calibrated and (t := validate.train_temperature(run.trainable)) != 1:
        fitted = {"kind": "temperature", "temperature": t}
    note = {
        "format": kind,
        "calibrated": calibrated,
        "calibrator": fitted,
        "step": run.step,
        "alpha": float(run.alpha),
        **{n: record[n] for n in ("config", "task", "model", "versions")},
    }
    store.write_json(part / NOTE, note)


def _card(
    part: epath.Path, name: str, run: Fitted, kind: str, calibrated: bool
) -> None:
    bench, held = run.bench, {}
    for file in sorted((run.workdir / "eval").glob("*/metrics.json")):
        metrics = folder.read_json(file)
        if metrics.get("step") == run.step and "n" in metrics:
            held[file.parent.name] = metrics
    diagram = run.workdir / "report" / "reliability_validation.png"
    if has := "validation" in held and diagram.exists():
        (part / cards.DIAGRAM).write_bytes(diagram.read_bytes())
    divisor, fitted = temperature_of(run)
    base = f"{name}/base" if bench.base.folder is None else bench.base.name
    text = cards.markdown(
        cards.Card(
            name=name,
            kind=kind,
            method=bench.settings.method,
            base=base,
            revision=bench.base.revision,
            task=bench.task.name,
            labels=bench.task.labels,
            pair=bench.task.pair,
            max_length=bench.settings.data.max_length,
            temperature=1.0 if calibrated else divisor,
            calibrated=calibrated,
            fitted=divisor if fitted == "temperature" else None,
            calibrator=fitted,
            metrics=held,
            has_diagram=has,
        )
    )
    store.write_whole(part / "README.md", text)
