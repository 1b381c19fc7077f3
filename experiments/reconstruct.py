"""Learn to write given adapters from descriptions: reconstruction.

    python experiments/reconstruct.py --workdir=runs/reconstruct

A LoRA adapter is trained for each of some tasks of the relabelling benchmark
(experiments/relabelling) and exported to peft, the head too. A network then learns to
write these adapters from the descriptions of their tasks, and from nothing else. The
table says how near the written deltas are (R^2 against the mean adapter, cosine) and
how many test sentences they answer rightly, beside the given adapters, for tasks that
the network has learned and for unseen ones. It is written to WORKDIR/reconstruct.md and
reconstruct.json. When the command is started again, it goes on with what is missing.
`--page` writes the results into docs/conditions.md. `--config.SECTION.FIELD=VALUE`
overrides a field of the network's run.
"""

import argparse
import sys
from typing import Any

import numpy as np
import relabel
import results_page
import yaml
from etils import epath

from hypelora_jax import cli, files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.config.loading import load_settings
from hypelora_jax.exchange import exports
from hypelora_jax.report.metric_tables import Table, cell, to_markdown
from hypelora_jax.run.paths import Run

COUNT, UNSEEN, STEPS = 24, 6, 150  # adapters to learn, unseen ones, steps of each
RANK = 4
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
    "written": "accuracy, written",
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


def accuracies(folder: epath.Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return accuracy of given and written adapters on the tasks of a split."""
    given = {}
    for name in found["adapters"]:
        run = Run.open(folder / "adapters" / name)
        given[name] = files.read_json(run.metrics_file("test"))["accuracy"]
    made = {name: found["tasks"][name]["accuracy"] for name in given}
    gaps = np.array([made[name] - given[name] for name in given])
    return {
        "tasks": len(given),
        "r2": found.get("delta_r2"),  # None if all are equal
        "cosine": found["delta_cosine"],
        "given": float(np.mean([*given.values()])),
        "written": float(np.mean([*made.values()])),
        "difference": float(np.mean(gaps)),
        "lowest_difference": float(np.min(gaps)),
        "each": {
            name: found["adapters"][name]
            | {"given": given[name], "written": made[name]}
            for name in given
        },
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Return a row for the learned tasks and one for the unseen ones."""
    rows = tuple((kind, *(cell(x[n]) for n in COLUMNS)) for kind, x in found.items())
    return Table("reconstruction", ("adapters", *COLUMNS.values()), rows)


def to_page(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the same rows into docs/conditions.md."""
    about = results_page.made(steps=args.steps, count=args.count, unseen=args.unseen)
    rows = [[kind, *(x[n] for n in COLUMNS)] for kind, x in found.items()]
    results_page.write("reconstruct", {"made": about, "table": rows, **found})


def run(args: argparse.Namespace) -> None:
    """Train the adapters and the network, and write the table."""
    folder = epath.Path(args.workdir)
    relabel.write_tasks(folder / "tasks")
    file, network = set_of(folder, args), folder / "network"
    size = [f"--config.tasks.per_batch={args.count}", "--config.tasks.rows=1"]
    size += [f"--config.optim.batch_size={args.count}"]
    flags = [f"--config.tasks.file={file}", *NETWORK, *size, *args.overrides]
    train(load_settings("tasks", flags), str(network))
    splits = {
        kind: files.read_json(Run.open(network).metrics_file(split))
        for kind, split in SPLITS.items()
    }
    found = {kind: accuracies(folder, one) for kind, one in splits.items()}
    files.write_json(folder / "reconstruct.json", found)
    if args.page:
        to_page(found, args)
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
