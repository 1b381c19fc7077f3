"""Learn to write given adapters from descriptions: reconstruction.

    python experiments/reconstruct.py --workdir=runs/reconstruct

A LoRA adapter is trained for each of some tasks of the relabelling benchmark
(experiments/relabelling) and exported to peft, the head too. A network then learns to
write these adapters from the descriptions of their tasks, and from nothing else. The
table says how near the written deltas are to the given ones (R^2 against the mean
adapter, cosine). It also has accuracies on test sentences, where each task keeps the
head of its given adapter: with the given delta, the written one, that of another task,
and none. It has a row for the learned tasks and one for unseen tasks, and is written to
WORKDIR/reconstruct.md and reconstruct.json. When the command is started again, it goes
on with what is missing.
`--page` writes the results into docs/conditions.md. `--config.SECTION.FIELD=VALUE`
overrides a field of the network's run.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import relabel
import results_page
import yaml
from etils import epath

from hypelora_jax import cli, files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.config.loading import load_settings
from hypelora_jax.evaluate import averaging, evaluation
from hypelora_jax.evaluate.audit import auditing, controls
from hypelora_jax.evaluate.fitted import corpus_of, tokenised
from hypelora_jax.exchange import exports
from hypelora_jax.report.metric_tables import Table, cell, to_markdown
from hypelora_jax.run.paths import Run

COUNT, UNSEEN, STEPS = 24, 6, 150  # adapters to learn, unseen ones, steps of each
RANK = 4
DRAWS = 5  # of the deltas of other tasks
UNSEEN_GROUPS = ("thresholds_inside", "combinations", "attributes")
# The step of the network has all adapters and one row of each, which it does not read.
NETWORK = (
    "--config.loss.objective=reconstruction",
    "--config.head.kind=separate",
    f"--config.lora.rank={RANK}",
    "--config.tasks.steps=1000",
    "--config.optim.num_epochs=3",
    "--config.hyper.widths=(512,512)",
    "--config.select_on=last",
)
SPLITS = {"learned": "test", "unseen": "held_out_test"}
COLUMNS = {
    "tasks": "tasks",
    "r2": "R²",
    "cosine": "cosine",
    "given": "accuracy, given",
    "written": "written",
    "another": "another's delta",
    "head_alone": "no delta",
    "difference": "mean difference",
    "lowest_difference": "lowest difference",
}


def chosen(about: dict[str, Any], groups: tuple[str, ...], count: int) -> list[str]:
    """Return names of tasks of some groups, evenly spaced in the order of the file."""
    names = [name for name, one in about.items() if one["group"] in groups]
    at = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[i] for i in at]


def adapter_of(
    folder: epath.Path, entry: dict[str, Any], shared: Any, steps: int
) -> epath.Path:
    """Train the adapter of one task and export it; return the folder of the adapter."""
    name = entry["name"]
    output, run = folder / "peft" / name, folder / "adapters" / name
    if output.exists():
        return output
    file = folder / "tasks" / f"one_{name}.yaml"
    one = {"defaults": shared, "tasks": [entry | {"role": "train"}]}
    files.write_whole(file, yaml.safe_dump(one, sort_keys=False))
    flags = [f"--config.tasks.file={file}", f"--config.tasks.steps={steps}"]
    flags += ["--config.optim.num_epochs=1", f"--config.lora.rank={RANK}"]
    train(load_settings("tasks:method=lora", flags), str(run))
    exports.export(str(run), str(output))
    return output


def set_of(folder: epath.Path, args: argparse.Namespace) -> epath.Path:
    """Write the set of tasks with their adapters; return its file."""
    about = files.read_json(folder / "tasks" / "about.json")["tasks"]
    listed = yaml.safe_load((folder / "tasks" / "tasks.yaml").read_text())
    entries = {one["name"]: one for one in listed["tasks"]}
    learned = chosen(about, ("train",), args.count)
    unseen = chosen(about, UNSEEN_GROUPS, args.unseen)
    tasks = []
    for i, name in enumerate((*learned, *unseen), 1):
        print(f"adapter {i} of {len(learned) + len(unseen)}: {name}", file=sys.stderr)
        path = adapter_of(folder, entries[name], listed["defaults"], args.steps)
        tasks.append(entries[name] | {"adapter": str(files.absolute(path))})
    file = folder / "tasks" / "with_adapters.yaml"
    text = {"defaults": listed["defaults"], "tasks": tasks}
    files.write_whole(file, yaml.safe_dump(text, sort_keys=False, width=1000))
    return file


def without_delta(folder: epath.Path, name: str) -> float:
    """Return the accuracy of a given adapter's head on the bare model."""
    fitted = evaluation.open_fitted(str(folder / "adapters" / name))
    none = jax.tree.map(jnp.zeros_like, fitted.trainable["lora"])
    fitted = fitted._replace(trainable={**fitted.trainable, "lora": none})
    table = corpus_of(fitted).splits["test"]
    logits_NY = averaging.answerer(fitted)(tokenised(fitted, table)).logits
    return float(np.mean(logits_NY.argmax(axis=1) == table.label))


def with_another(network: epath.Path, split: str) -> dict[str, float]:
    """Return the accuracy of each task's head with the delta of another learned task.

    It is the mean over DRAWS deltas.
    """
    fitted = evaluation.open_fitted(str(network))
    table, tasks = corpus_of(fitted).splits[split], fitted.session.task_set
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    rng, data = np.random.default_rng(0), tokenised(fitted, table)
    hits = []
    for _ in range(DRAWS):
        source = controls.other(rng, len(tasks.names), trained)
        own = {n: x[source] for n, x in data.tasks.conditions.items()}
        probs_NY = auditing.answered(fitted, data, own)
        hits.append(probs_NY.argmax(axis=1) == table.label)
    hit_N = np.mean(hits, axis=0)
    return {
        name: float(hit_N[table.task == k].mean())
        for k, name in enumerate(tasks.names)
        if (table.task == k).any()
    }


def accuracies(folder: epath.Path, split: str) -> dict[str, Any]:
    """Return accuracies on the tasks of a split: of adapters, and of their heads.

    Each task has the head of its given adapter, so a written delta is worth what it
    adds to `head_alone`, the bare model, and to `another`, the delta of another task.
    """
    network = folder / "network"
    found = files.read_json(Run.open(network).metrics_file(split))
    another = with_another(network, split)
    given = {}
    for name in found["adapters"]:
        run = Run.open(folder / "adapters" / name)
        given[name] = files.read_json(run.metrics_file("test"))["accuracy"]
    made = {name: found["tasks"][name]["accuracy"] for name in given}
    alone = {name: without_delta(folder, name) for name in given}
    gaps = np.array([made[name] - given[name] for name in given])
    return {
        "tasks": len(given),
        "r2": found.get("delta_r2"),  # None if all are equal
        "cosine": found["delta_cosine"],
        "given": float(np.mean([*given.values()])),
        "written": float(np.mean([*made.values()])),
        "head_alone": float(np.mean([*alone.values()])),
        "another": float(np.mean([another[name] for name in given])),
        "difference": float(np.mean(gaps)),
        "lowest_difference": float(np.min(gaps)),
        "each": {
            name: found["adapters"][name]
            | {"given": given[name], "written": made[name]}
            | {"head_alone": alone[name], "another": another[name]}
            for name in given
        },
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Return a row for the learned tasks and one for the unseen ones."""
    rows = tuple((kind, *(cell(x[n]) for n in COLUMNS)) for kind, x in found.items())
    return Table("reconstruction", ("adapters", *COLUMNS.values()), rows)


def to_page(found: dict[str, dict[str, Any]], made: dict[str, Any]) -> None:
    """Write the same rows into docs/conditions.md."""
    rows = [[kind, *(x[n] for n in COLUMNS)] for kind, x in found.items()]
    results_page.write("reconstruct", {"made": made, "table": rows, **found})


def run(args: argparse.Namespace) -> None:
    """Train the adapters and the network, and write the table."""
    folder = epath.Path(args.workdir)
    names = ("count", "unseen", "steps", "overrides")
    made = results_page.begun(folder, **{n: getattr(args, n) for n in names})
    relabel.write_tasks(folder / "tasks")
    file, network = set_of(folder, args), folder / "network"
    size = [f"--config.tasks.per_batch={args.count}", "--config.tasks.rows=1"]
    size += [f"--config.optim.batch_size={args.count}"]
    flags = [f"--config.tasks.file={file}", *NETWORK, *size, *args.overrides]
    train(load_settings("tasks", flags), str(network))
    found = {kind: accuracies(folder, split) for kind, split in SPLITS.items()}
    files.write_json(folder / "reconstruct.json", found)
    if args.page:
        to_page(found, made)
    text = to_markdown(table(found))
    files.write_whole(folder / "reconstruct.md", text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, required=True)
    parser.add_argument("--count", type=int, default=COUNT, help="adapters to learn")
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="unseen adapters")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each adapter")
    parser.add_argument("--page", action="store_true", help="write it into the docs")
    args = relabel.with_overrides(parser)
    sys.exit(cli.launch(__file__, lambda: run(args)))
