"""Leave one domain out: does a description of an unseen domain help?

    python experiments/domains.py --workdir=runs/domains

Four tasks ask whether an opinion is positive, in film reviews, product reviews, a
newspaper and tweets. For each domain and seed the command trains a network that reads
descriptions, and one static LoRA adapter, on the other three domains, and audits the
network on the domain that is left out. It writes domains.md and domains.json to
WORKDIR, and goes on with what is missing when it is started again.
`--page` writes the results into docs/conditions.md. `--config.SECTION.FIELD=VALUE`
overrides a field of the network's run; `--config.condition.source=set` reads unlabelled
sentences instead of descriptions.
"""

import argparse
import sys
from typing import Any

import numpy as np
import relabel
import results_page
from etils import epath
from relabelling.attributes import DOMAINS

from hypelora_jax import cli, files
from hypelora_jax.commands import audit
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train
from hypelora_jax.evaluate.audit import auditing
from hypelora_jax.report.metric_tables import Table, cell, to_markdown
from hypelora_jax.run.paths import Run

STEPS, SEEDS = 600, 3
METRICS = ("accuracy", "nll", "ece")
TITLES = {"movie_reviews": "film reviews", "amazon": "product reviews"}
TITLES |= {"nyt": "a newspaper", "tweets": "tweets"}


def audited(folder: epath.Path, domain: str, seed: int, args: argparse.Namespace):
    """Train the two runs of a domain and a seed, and return their audit."""
    own = folder / f"{domain}_{seed}"
    text, static = str(own / "text"), str(own / "static")
    file = own / "audit.json"
    if file.exists():
        return files.read_json(file)
    tasks = folder / "tasks" / domain
    relabel.write_tasks(tasks, e1=domain)
    file_of = tasks / "tasks.yaml"
    train(relabel.settings_of(file_of, seed, args.steps, args.overrides), text)
    if not Run.open(static).summary_file.exists():
        audit.train_without_condition(text, static)
    found = auditing.audit(text, "held_out_test", static)
    files.write_json(file, found)
    return found


def to_table(found: list[dict[str, Any]]) -> Table:
    """Return the metrics of all controls in each domain, seed by seed."""
    rows = []
    for one in found:
        for name, metrics in one["controls"].items():
            margin = one["margins"].get(name)
            minus = "" if margin is None else cell(margin["nll"])
            cells = (cell(metrics[m]) for m in METRICS)
            rows.append((one["domain"], str(one["seed"]), name, *cells, minus))
    columns = ("domain left out", "seed", "answered with", "accuracy", "NLL", "ECE")
    return Table("", (*columns, "its NLL minus matched"), tuple(rows))


def gain(one: dict[str, Any], control: str, metric: str) -> dict[str, float]:
    """Return how much better the matched description is than a control.

    It is the difference in accuracy, or in a loss, with its interval.
    """
    margin = one["margins"][control][metric]
    if metric != "accuracy":
        return margin
    return {"value": -margin["value"], "low": -margin["high"], "high": -margin["low"]}


def to_page(found: list[dict[str, Any]], made: dict[str, Any]) -> None:
    """Write a row for each domain and seed, and means, into docs/conditions.md.

    The mean of a domain is that of its accuracy minus static's.
    """
    gains = (("static", "accuracy"), ("static", "nll"), ("shuffled", "nll"))
    rows = []
    for one in found:
        matched, static = (one["controls"][n] for n in ("matched", "static"))
        seen = [matched["accuracy"], static["accuracy"], gain(one, *gains[0])]
        seen += [matched["nll"]["value"], *(gain(one, *of) for of in gains[1:])]
        eces = [matched["ece"], static["ece"]]
        rows.append([TITLES[one["domain"]], one["seed"], *seen, *eces])

    def mean(control: str, metric: str, some: list[dict[str, Any]]) -> float:
        return float(np.mean([gain(one, control, metric)["value"] for one in some]))

    averaged = (*gains, ("static", "ece"))
    means = {"_".join(of): mean(*of, found) for of in averaged}
    for domain in dict.fromkeys(one["domain"] for one in found):
        own = [one for one in found if one["domain"] == domain]
        means[domain] = mean(*gains[0], own)
    about = made | {"seeds": len({one["seed"] for one in found})}
    results_page.write("domains", {"made": about, "table": rows, "mean": means})


def run(args: argparse.Namespace) -> None:
    """Audit domain by domain, and write the table after each."""
    folder, found = epath.Path(args.workdir), []
    of_flags = {"steps": args.steps, "overrides": args.overrides}
    made = results_page.begun(folder, **of_flags)
    for seed in range(args.seeds):
        for domain in DOMAINS:
            own = audited(folder, domain, seed, args)
            found.append({"domain": domain, "seed": seed, **own})
            files.write_json(folder / "domains.json", found)
            files.write_whole(folder / "domains.md", to_markdown(to_table(found)))
    if args.page:
        to_page(found, made)
    print(to_markdown(to_table(found)))
    for one in found:
        print(f"{one['domain']}, seed {one['seed']}: {one['line']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--page", action="store_true", help="write it into the docs")
    args = relabel.with_overrides(parser)
    sys.exit(cli.launch(__file__, lambda: run(args)))
