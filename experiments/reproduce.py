"""Reproduce a table or Figure 2 of the paper, and compare its numbers with ours.

    python experiments/reproduce.py --table=2 --workdir=runs/paper
    python experiments/reproduce.py --table=2 --backbone=minilm --budget=30 --data=GLUE
    python experiments/reproduce.py --table=figure2 --backbone=minilm --budget=30

Every row is a run of configs/paper.py, trained by the code of `hypelora train`. All
tables share the runs, in WORKDIR/TASK/ROW. When the command is started again, it skips
finished rows and continues the unfinished one. It writes table2.md and table2.json (or
table1, or figure2 and figure2.png) to WORKDIR. `--config.SECTION.FIELD=VALUE` overrides
a field of every row. docs/reproduce.md explains a budget, and what differs.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pace
import published
from etils import epath
from rich.console import Console

from hypelora_jax import cli, files
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train as train_run
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data import sources
from hypelora_jax.data.tasks import glue_task
from hypelora_jax.errors import UserError
from hypelora_jax.report import figures, metric_tables, series
from hypelora_jax.run import lock
from hypelora_jax.run.paths import Run

HERE = Path(__file__).parent / "paper"
NAMES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    **{
        f"hyper_{trunk.lower()}_{a}": f"{trunk}, A {a}"
        for trunk in ("MLP", "Transformer")
        for a in ("generated", "fixed", "random")
    },
}
FIVE = ("lora", *(name for name in NAMES if name.endswith(("generated", "fixed"))))
ROWS = {"1": ("full", "lora"), "2": FIVE, "figure2": FIVE}
TWO = ("cola", "sst2")
TASKS = {"1": (*TWO, "qnli", "mrpc", "rte", "mnli"), "2": TWO, "figure2": TWO}
LONG = ("ece", "classwise_ece", "mce", "ace", "tace_0.01_reference", "brier")
METRICS = {"1": LONG, "2": ("ece",), "figure2": ("ece",)}
ROBERTA = "roberta_base"
# MiniLM's LoRA learns best at 1e-3 (docs/results.md) and the paper's at 4e-4. Every row
# gets the same factor, so that the ratios between the methods' rates stay the same.
LR_SCALE = {"minilm": 2.5}
SHORT = 128  # tokens for other backbones; CoLA's longest sentence has 47
SPARE = 0.88  # share of the remaining time for which runs are planned
END = 30.0  # seconds to make the tables


def settings_of(
    args: argparse.Namespace, task: str, row: str, length: pace.Length | None
) -> Settings:
    """Return the settings of one row of the paper, changed by the flags."""
    method, _, a = row.rpartition("_") if row.startswith("hyper_") else (row, "", "")
    spec = f"paper:task={task},method={method}" + (f",a={a}" if a else "")
    first = cli.load_config(spec)
    own: dict[str, Any] = {"num_seeds": args.seeds or first.num_seeds}
    if args.data != "tfds":
        own |= {"data.source": "glue_dir", "data.dir": args.data}
    if args.backbone != ROBERTA:
        own["model.path"] = args.backbone
        own["data.max_length"] = min(SHORT, first.data.max_length)
    own["optim.lr"] = first.optim.lr * args.lr_scale
    if length is not None:
        own["optim.num_epochs"], own["data.max_examples"] = length
    flags = [f"--config.{name}={value}" for name, value in own.items()]
    return from_dict(cli.load_config(spec, [*flags, *args.overrides]).to_dict())


class Record:
    """WORKDIR/lengths.json: the length of the runs of each task, and their paces.

    Paces are measured only once, because a continued command must train the same runs.
    """

    def __init__(self, args: argparse.Namespace):
        self._path, self._args = epath.Path(args.workdir) / "lengths.json", args
        asked = {n: getattr(args, n) for n in ("budget", "backbone", "seeds")}
        new = {"asked": asked, "lengths": {}, "paces": {}}
        self.content = files.read_json(self._path) if self._path.exists() else new
        if self.content["asked"] != asked:
            raise UserError(
                f"{args.workdir} was started with {self.content['asked']}, and now "
                f"{asked} is asked for; give the same flags, or another --workdir"
            )

    def length(self, task: str) -> pace.Length | None:
        """Return the length of the runs of a task, or None for the paper's length."""
        length = self.content["lengths"].get(task)
        return None if length is None else pace.Length(*length)

    def fill(self, began: float) -> None:
        """Measure the rows of tasks that have no length yet, and divide the time."""
        args, workdir = self._args, self._path.parent
        new = [task for task in args.tasks if task not in self.content["lengths"]]
        paces = {
            task: {
                row: pace.measure(settings_of(args, task, row, None), workdir)
                for row in args.rows
            }
            for task in new
        }
        spent = time.monotonic() - began
        left = (SPARE * (60 * args.budget - spent) - END) / 60
        for task, rows in paces.items():
            most = min(settings_of(args, task, r, None).optim.num_epochs for r in rows)
            share = left / len(new) / args.seeds
            self.content["lengths"][task] = pace.fit(rows, share, most)
            self.content["paces"][task] = {row: p._asdict() for row, p in rows.items()}
        files.write_json(self._path, self.content)

    def say(self) -> None:
        """Log one line per row."""
        for task in self._args.tasks:
            for row in self._args.rows:
                length, known = self.length(task), self.content["paces"][task].get(row)
                if known is not None:
                    pace.say(f"{task}/{row}", pace.Pace(**known), length)
                else:
                    told = "%s/%s: %d epochs of %d examples, as measured before"
                    logging.info(told, task, row, *length)


def train(args: argparse.Namespace, record: Record) -> dict[tuple[str, str], Any]:
    """Train all rows that are not finished; return (task, row) -> Series."""
    out = {}
    for task in args.tasks:
        for row in args.rows:
            settings = settings_of(args, task, row, record.length(task))
            path = args.workdir / task / row
            train_run(settings, str(path))
            out[task, row] = series.load(path)._replace(name=NAMES[row])
    return out


def reproduce(args: argparse.Namespace) -> None:
    """Train the missing rows, then print and write the table or the figure."""
    began = time.monotonic()
    args.workdir = Run.create(args.workdir).path
    record = Record(args)
    if args.data == "tfds":
        for task in args.tasks:
            logging.info(sources.prepare(settings_of(args, task, "lora", None).data))
    if args.budget:
        with lock.hold(Run.open(args.workdir)):
            record.fill(began)
        record.say()
    found = train(args, record)
    minutes = (time.monotonic() - began) / 60
    made, rows = compare(args, record, found)
    out = {"table": args.table, "minutes": round(minutes, 1), **record.content}
    name = args.table if args.table.startswith("figure") else f"table{args.table}"
    files.write_json(args.workdir / f"{name}.json", out | {"tasks": rows})
    text = "\n".join(f"{one.title}\n\n{metric_tables.to_markdown(one)}" for one in made)
    files.write_whole(args.workdir / f"{name}.md", text)
    for one in made:
        Console(width=110).print(metric_tables.to_rich(one))
    if args.table == "figure2":
        draw(args, found)
    print(f"{name}: {args.workdir / name}.md; {minutes:.1f} minutes")


def caption(args: argparse.Namespace, record: Record, task: str, score: str) -> str:
    """Describe the runs of a task in one line."""
    length = record.length(task)
    parts = [f"{args.backbone} on {task}"]
    if length is not None:
        parts.append(f"{length.epochs} epochs of {length.examples:,} examples")
    if args.lr_scale != 1:
        parts.append(f"rates times {args.lr_scale:g}")
    parts += args.overrides
    parts.append(f"validation at the epoch of the best {metric_tables.title_of(score)}")
    return "; ".join(parts) + ". Paper: RoBERTa-base"


def compare(
    args: argparse.Namespace, record: Record, found: dict
) -> tuple[list[metric_tables.Table], dict]:
    """Return one table per task, and the same numbers for JSON."""
    number = "2" if args.table == "figure2" else args.table
    made, out = [], {}
    for task in args.tasks:
        names = (scores.main(glue_task(task).task.metrics), *METRICS[args.table])
        theirs = {
            (line["row"], line["metric"]): published.Published(
                float(line["mean"]), float(line["std"]) if line["std"] else None
            )
            for line in published.read(HERE / "tables.csv")
            if (line["table"], line["task"]) == (number, task)
        }
        held = {
            row: (found[task, row], published.cells(found[task, row], names, 1000))
            for row in args.rows
        }
        title = caption(args, record, task, names[0])
        made.append(published.table(title, held, theirs))
        out[task] = {
            row: {
                "epochs": published.chosen_epochs(method),
                **published.as_dict(row, cells, theirs),
            }
            for row, (method, cells) in held.items()
        }
    return made, out


def draw(args: argparse.Namespace, found: dict) -> None:
    """Draw WORKDIR/figure2.png: score and ECE over epochs, ours and the paper's."""
    lines, panels = published.read(HERE / "figure2.csv"), []
    for task in args.tasks:
        score = scores.main(glue_task(task).task.metrics)
        ours = [published.curve(found[task, row], score) for row in args.rows]
        theirs = [
            published.Curve(NAMES[row], *published_curve(lines, task, row, score))
            for row in args.rows
            if row in lines[0]
        ]
        panels.append(published.Panel(f"{task}, {args.backbone}", score, ours))
        panels.append(published.Panel(f"{task}, the paper's figure 2", score, theirs))
    figures.save(published.over_epochs(panels), args.workdir / "figure2.png")


def published_curve(lines: Sequence[dict], task: str, row: str, score: str) -> tuple:
    """Return (epochs, score, ECE) of a row of figure 2, from epoch 1."""
    held = {
        metric: {
            int(line["epoch"]): float(line[row])
            for line in lines
            if (line["task"], line["metric"]) == (task, metric) and line["epoch"] != "0"
        }
        for metric in (score, "ece")
    }
    return list(held["ece"]), list(held[score].values()), list(held["ece"].values())


def arguments() -> argparse.Namespace:
    """Parse the flags, and derive the defaults that depend on them."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--table", required=True, choices=tuple(ROWS))
    add("--rows", default="", help=f"of {', '.join(NAMES)}; the table's without it")
    add("--tasks", default="", help="the table's without it; cola with a budget")
    add("--backbone", default=ROBERTA, help="roberta_base, minilm, random:tiny, a path")
    add("--budget", type=float, default=0.0, help="minutes for everything; 0: no end")
    add("--seeds", type=int, default=0, help="the paper's without it; 1 with a budget")
    add("--lr_scale", type=float, help="of every rate; 2.5 for minilm, else 1")
    about = "folder of GLUE's TSV, or tfds"
    add("--data", action=PathFlag, default="tfds", metavar="DIR", help=about)
    add("--workdir", action=PathFlag, default="runs/paper")
    args, args.overrides = parser.parse_known_args()
    if wrong := [x for x in args.overrides if not re.match(r"--config\.[\w.]+=", x)]:
        parser.error(
            f"unknown argument {wrong[0]}; expected a flag that --help lists, or "
            "--config.X.Y=VALUE"
        )
    args.seeds = args.seeds or int(args.budget > 0)
    if args.lr_scale is None:
        args.lr_scale = LR_SCALE.get(args.backbone, 1.0)
    tasks = TASKS[args.table][: 1 if args.budget else None]
    args.tasks = tuple(filter(None, args.tasks.split(","))) or tasks
    args.rows = tuple(filter(None, args.rows.split(","))) or ROWS[args.table]
    for name, known in (("tasks", TASKS["1"]), ("rows", tuple(NAMES))):
        if wrong := [x for x in getattr(args, name) if x not in known]:
            parser.error(
                f"--{name} has the unknown value {wrong[0]}; expected some of "
                f"{', '.join(known)}"
            )
    if args.budget < 0 or args.seeds < 0 or args.lr_scale <= 0:
        parser.error(
            "--budget, --seeds or --lr_scale is out of range; expected --budget and "
            "--seeds of at least 0, and --lr_scale above 0"
        )
    return args


if __name__ == "__main__":
    args = arguments()
    sys.exit(cli.launch(__file__, lambda: reproduce(args)))
