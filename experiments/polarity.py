"""Ways to make "not" generalise, compared on the relabelling benchmark.

    python experiments/polarity.py --workdir=runs/polarity

A network that reads descriptions learns what an attribute is, but not that a negation
turns its answer round: it answers "contains no number" badly if it was trained on
"contains a number" only. Each way below is a run with other settings on the same tasks
(experiments/relabelling). The command trains one after the other and writes a table of
accuracies with intervals, and of how well a description and its negation contradict
each other, to WORKDIR/polarity.md; with `--page` also into docs/conditions.md. When it
is started again, it goes on with what is missing.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import judging
import relabel
from etils import epath
from results_page import begun, said, write

from hypelora_jax import cli, files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.report.metric_tables import Table, cell, to_markdown

STEPS = 400
NONE = "condition.sign=0"
PLAIN = "condition.whiten=False"
WAYS: dict[str, tuple[str, ...]] = {
    "a sign": (),
    "no sign": (NONE,),
    "a sign, no whitening": (PLAIN,),
    "no sign, no whitening": (NONE, PLAIN),
    "a sign that the last layer tells": ("condition.sign=1",),
    "no sign, noise of deviation 0.6": (NONE, "condition.jitter=0.6"),
    "no sign, dropout of 0.3": (NONE, "condition.dropout=0.3"),
    "no sign, core between shared factors": (NONE, "hyper.outputs=core"),
}
COLUMNS = {  # heading: (group, answered with)
    "trained": ("train", "matched"),
    "new verb": ("train", "unseen_verb"),
    "new noun": ("train", "unseen_noun"),
    "new template": ("train", "unseen_template"),
    "combinations to choose by": ("validation_combinations", "matched"),
    "combinations": ("combinations", "matched"),
}
FLIPS = ("flip, trained", "flip, combinations")


def answered(folder: epath.Path, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a way with each seed, and judge its answers."""
    tasks = folder / "tasks"
    about = relabel.known(tasks)
    done = []
    for seed in range(args.seeds):
        own = folder / f"{way.replace(', ', '-').replace(' ', '_')}_{seed}"
        done.append(own / "answers.npz")
        if done[-1].exists():
            continue
        given = [relabel.SIGN, *(f"--config.{x}" for x in WAYS[way]), *args.overrides]
        settings = relabel.settings_of(tasks / "tasks.yaml", seed, args.steps, given)
        train(settings, str(own / "text"))
        judging.answer(
            judging.Runs(str(own / "text")), about, relabel.ROWS, seed, done[-1]
        )
    return judging.judge(done, about)


def rows_of(found: Mapping[str, dict[str, Any]]) -> list[list[Any]]:
    """Return a row for each way: its name, accuracies with intervals, and flips."""
    rows = []
    for way, own in found.items():
        accuracies = [own["groups"][g][a]["accuracy"] for g, a in COLUMNS.values()]
        flips = [own["flip"][group].values() for group in ("train", "combinations")]
        rows.append([way, *accuracies, *(" ".join(map(said, x)) for x in flips)])
    return rows


def to_page(found: Mapping[str, dict[str, Any]], made: dict[str, Any]) -> None:
    """Write the rows of the ways that have run into docs/conditions.md."""
    columns = " | ".join([*COLUMNS, *FLIPS])
    about = {"made": made, "columns": columns}
    write("polarity", {**about, "table": rows_of(found)})


def to_table(found: Mapping[str, dict[str, Any]]) -> Table:
    """Return the rows with their intervals as text."""
    rows = [
        tuple(cell(x) if isinstance(x, dict) else x for x in row)
        for row in rows_of(found)
    ]
    return Table("", ("way", *COLUMNS, *FLIPS), tuple(rows))


def run(args: argparse.Namespace) -> None:
    """Compare way by way, and write the table after each."""
    folder, found = epath.Path(args.workdir), {}
    of_flags = {"steps": args.steps, "seeds": args.seeds, "overrides": args.overrides}
    made = begun(folder, rows=relabel.ROWS, **of_flags)
    relabel.write_tasks(folder / "tasks")
    for way in WAYS:
        found[way] = answered(folder, way, args)
        files.write_json(folder / "polarity.json", found)
        files.write_whole(folder / "polarity.md", to_markdown(to_table(found)))
        if args.page:
            to_page(found, made)
    print(to_markdown(to_table(found)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="write it into the docs")
    args = relabel.with_overrides(parser)
    sys.exit(cli.launch(__file__, lambda: run(args)))
