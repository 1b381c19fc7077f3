"""Audit whether the condition of a run matters: a table, then the verdict in a line."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.errors import UserError


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the runs it is compared with, and the file to write."""
    flags.add_workdir(parser)
    add = parser.add_argument
    about = "split to audit; by default the first there is of held_out_test, "
    about += "held_out_validation, test and validation"
    add("--split", default="", help=about)
    about = "run of one LoRA adapter that was trained on all tasks of the set"
    flags.add_path(parser, "--static", "DIR", about)
    about = "train that run in DIR first, in place of --static"
    flags.add_path(parser, "--train_static", "DIR", about)
    about = "run that was trained on this task alone; give the flag once for each task"
    add("--oracle", dest="oracles", action="append", metavar="TASK=DIR", help=about)
    add("--replicas", type=int, default=1000, help="bootstrap replicas; 1000")
    add("--seed", type=int, default=0, help="of the draws; 0")
    flags.add_path(parser, "--json", "FILE", "write the table as JSON, too")
    flags.add_offline(parser)


def run(
    workdir: str,
    split: str,
    static: str,
    train_static: str,
    oracles: Sequence[str] | None,
    replicas: int,
    seed: int,
    json: str,
) -> None:
    """Print the tables and the verdict, and write them to the run and to --json."""
    from rich.console import Console

    from hypelora_jax.evaluate.audit import auditing
    from hypelora_jax.report import metric_tables, result_tables
    from hypelora_jax.run.paths import Run

    files.keep_compiled()
    if static and train_static:
        raise UserError(
            "--static names a trained run and --train_static trains one; expected one "
            "of them"
        )
    if replicas < 2:
        raise UserError(f"--replicas is {replicas}; expected at least 2, such as 1000")
    if train_static:
        train_without_condition(workdir, train_static)
    own = (static or train_static, by_task(oracles or ()), replicas, seed)
    found = auditing.audit(workdir, split, *own)
    files.write_json(Run.open(workdir).audit_file, found)
    if json:
        files.write_json(json, found)
    console = Console(file=sys.stdout)
    for table in result_tables.audits(found):
        console.print(metric_tables.to_rich(table))
    print(found["line"])


def by_task(given: Sequence[str]) -> dict[str, str]:
    """Return the folders of `TASK=DIR` by task.

    Raises:
      UserError: a text is not of this form, or a task occurs twice.
    """
    out: dict[str, str] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise UserError(
                f"--oracle is {text!r}; expected TASK=DIR: a task of the set and a run "
                "that was trained on it alone"
            )
        if name in out:
            raise UserError(f"--oracle names the task {name} twice; expected one run")
        out[name] = files.user_path(folder, "--oracle")
    return out


def train_without_condition(workdir: str, output: str) -> None:
    """Train one LoRA adapter for all tasks of a run; it must not be known which.

    It has the same base model, sites, rank, tasks, steps and seed, and the learning
    rate of the method `lora`.
    """
    import dataclasses

    from hypelora_jax import families, objectives
    from hypelora_jax.commands.train import train
    from hypelora_jax.config.adapter_sections import ConditionConfig
    from hypelora_jax.config.sections import LossConfig
    from hypelora_jax.model import METHODS
    from hypelora_jax.run import records

    record = records.open_record(workdir)[1]
    settings = records.settings_of(record)
    loss = settings.loss
    if objectives.of(records.task_of(record), loss).targets:  # one has no targets
        loss = LossConfig()
    rate, lr = METHODS["lora"].lr, settings.optim.lr
    optim = dataclasses.replace(settings.optim, lr=rate, trunk_lr=0.0)
    if settings.optim.head_lr == 0:
        optim = dataclasses.replace(optim, head_lr=lr)
    condition = ConditionConfig()
    if families.names(settings.head):  # labels are embedded as they were
        condition = ConditionConfig(encoder=settings.condition.encoder)
    static = dataclasses.replace(
        settings,
        method="lora",
        condition=condition,
        optim=optim,
        loss=loss,
        ckpt=dataclasses.replace(settings.ckpt, start=""),
    )
    if static.select_on == "margin":
        static = dataclasses.replace(static, select_on="calibration")
    train(static, output)
