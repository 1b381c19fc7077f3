"""Train and judge adapters made from descriptions: the relabelling benchmark.

    python experiments/relabel.py --workdir=runs/relabel
    python experiments/relabel.py --steps=400 --seeds=1 --json=short.json \
        --workdir=runs/short

170 yes/no tasks ask something about the same sentences (experiments/relabelling), so
only the description of a task reveals it. For each seed the command trains a network
that reads descriptions and one static LoRA adapter, and answers test sentences with
seen and unseen wordings, with those of other tasks, with nonsense and with negated
ones. With `--oracles` it first trains a LoRA adapter on each threshold that is held out
between trained ones. It writes relabel.md and relabel.json to WORKDIR. When it is
started again, it goes on with what is missing. `--config.SECTION.FIELD=VALUE` overrides
a field of the network's run. Each task is judged on 32 test sentences, half yes and
half no, or on as many as `--rows` says; `--rows=0` takes all, which are 64 or 160.
`--page` writes the results into docs/conditions.md, as those of the benchmark or its
short form.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import judging
import results_page
import yaml
from etils import epath
from relabelling import __main__ as writing

from hypelora_jax import cli, files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.config.loading import load_settings
from hypelora_jax.config.settings import Settings
from hypelora_jax.run.paths import Run

STEPS, SEEDS, ROWS = 3000, 3, 32
STATIC_STEPS = 600  # at most; the loss of one adapter for all tasks stays at ln 2
ORACLES, ORACLE_STEPS = "thresholds_inside", 300
LORA = "tasks:method=lora"
SIGN = "--config.condition.sign=5"  # half of the tasks are negations of others


def settings_of(
    tasks: epath.Path,
    seed: int,
    steps: int,
    overrides: list[str],
    config: str = "tasks",
) -> Settings:
    """Return the settings of a run, by default of one that reads descriptions."""
    own = [f"--config.tasks.file={tasks}", f"--config.tasks.steps={steps}"]
    found = load_settings(config, [*own, "--config.optim.num_epochs=1", *overrides])
    return dataclasses.replace(found, seed=seed)


def write_tasks(folder: epath.Path, **changed: Any) -> None:
    """Write the tasks of a study to a folder, if they are not there."""
    given = {"seed": 0, "without_domain": "", "more": False, "e1": "", "only": ""}
    if not (folder / "about.json").exists():
        writing.run(argparse.Namespace(output=str(folder), **(given | changed)))


def known(tasks: epath.Path) -> dict[str, Any]:
    """Return what about.json says of each task, and `shares` of raters by sentence."""
    about = files.read_json(tasks / "about.json")["tasks"]
    for name, own in about.items():
        text = (tasks / "data" / name / "test.jsonl").read_text("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
        own["shares"] = {row["text"]: row["share"] for row in rows if "share" in row}
    return about


def train_oracles(folder: epath.Path, about: Mapping[str, Any]) -> dict[str, str]:
    """Train an adapter on each threshold of ORACLES; return the runs by task.

    A threshold and its negation have the same sentences, so one run serves both.
    """
    listed = yaml.safe_load((folder / "tasks" / "tasks.yaml").read_text("utf-8"))
    out = {}
    for task in listed["tasks"]:
        name, of = task["name"], about[task["name"]]
        if of["group"] != ORACLES or of["polarity"] < 0:
            continue
        own, file = folder / "oracles" / name, folder / "tasks" / f"only_{name}.yaml"
        if not Run.open(own).summary_file.exists():
            one = {"defaults": listed["defaults"], "tasks": [{**task, "role": "train"}]}
            files.write_whole(file, yaml.safe_dump(one, sort_keys=False, width=1000))
            train(settings_of(file, 0, ORACLE_STEPS, [], LORA), str(own))
        out[name] = str(own)
    return out


def answers_of(
    folder: epath.Path, about: Mapping[str, Any], args: argparse.Namespace, seed: int
) -> epath.Path:
    """Train the runs of a seed and answer all sentences; return the file of answers."""
    own = folder / f"seed_{seed}"
    file = own / "answers.npz"
    if file.exists():
        return file
    tasks, given = folder / "tasks" / "tasks.yaml", [SIGN, *args.overrides]
    train(settings_of(tasks, seed, args.steps, given), str(own / "text"))
    steps = min(args.steps, STATIC_STEPS)
    train(settings_of(tasks, seed, steps, [], LORA), str(own / "static"))
    oracles = train_oracles(folder, about) if args.oracles else {}
    runs = judging.Runs(str(own / "text"), str(own / "static"), oracles)
    judging.answer(runs, about, args.rows, seed, file)
    return file


def run(args: argparse.Namespace) -> None:
    """Write the tasks, train and answer seed by seed, and write the tables."""
    folder = epath.Path(args.workdir)
    of_flags = {"steps": args.steps, "rows": args.rows, "overrides": args.overrides}
    made = results_page.begun(folder, **of_flags)
    write_tasks(folder / "tasks")
    about = known(folder / "tasks")
    found: dict[str, Any] = {}
    for seed in range(args.seeds):
        answers_of(folder, about, args, seed)
        done = [folder / f"seed_{s}" / "answers.npz" for s in range(seed + 1)]
        found = judging.judge(done, about)
        found["made"] = made
        files.write_json(folder / "relabel.json", found)
        files.write_whole(folder / "relabel.md", judging.to_markdown(found))
    if args.json:
        short = {name: found["groups"][own] for name, own in judging.SHORT.items()}
        files.write_json(args.json, short)
    if args.page:
        results_page.write(args.page, {**found, "table": judging.overview(found)})
    print(judging.to_markdown(found))
    print(json.dumps({n: found[n] for n in ("flip", "temperature")}))


def with_overrides(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the flags; `overrides` are the others, which set fields of a config."""
    known, others = parser.parse_known_args()
    if wrong := [flag for flag in others if not flag.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    known.overrides = others
    return known


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a task; 0: all")
    parser.add_argument("--oracles", action="store_true", help="train them")
    parser.add_argument("--json", action=PathFlag, default="")
    parser.add_argument("--page", choices=("relabel", "short"), default="")
    args = with_overrides(parser)
    if args.rows < 0 or args.rows % 2:
        parser.error(f"--rows is {args.rows}; expected an even number, or 0 for all")
    sys.exit(cli.launch(__file__, lambda: run(args)))
