"""Write docs/scaling.md: plans of the paper's method for RoBERTa-large on TPU slices.

    make plan                                       libtpu, in an environment of its own
    .venv-plan/bin/python experiments/scaling.py    about 4 minutes on 2 CPU cores

The script runs `hypelora plan` once for each row, without any TPU. It keeps the output
in --cache, so that a stopped script can continue.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from etils import epath

from hypelora_jax.commands.shared.flags import PathFlag

ROWS = 32  # sequences per chip and step
CONFIG = (
    "--config=paper:size=large,task=sst2,method={method}",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=layer",
    "--config.data.max_length=128",
    "--config.optim.accumulate=1",
)
V5E = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
V5P = ("v5p:2x2x1", "v5p:4x4x4", "v5p:4x8x8")
# method, slice, and conditions of a batch; 0: the paper's one, learned with the sites
CASES = [("hyper_mlp", t, 0) for t in (*V5E, *V5P)]
CASES += [(method, "v5e:16x16", 0) for method in ("lora", "full")]
CONDITIONED = "v5e:4x4"
CASES += [("hyper_mlp", CONDITIONED, count) for count in (1, 8, 64, 512)]
GIVEN = (
    "--config.condition.source=given",
    "--config.condition.width=128",
    "--config.condition.distinct={count}",
)
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def command(method: str, topology: str, count: int = 0) -> list[str]:
    """Return the flags of `hypelora plan` for one row of the tables."""
    batch = ROWS * chips(topology)
    flags = [flag.format(method=method) for flag in CONFIG]
    flags += [flag.format(count=count) for flag in GIVEN if count]
    return [*flags, f"--config.optim.batch_size={batch}", f"--topology={topology}"]


def chips(topology: str) -> int:
    """Return the number of chips of a slice."""
    count = 1
    for side in re.findall(r"\d+", topology.partition(":")[2]):
        count *= int(side)
    return count


def kept(method: str, topology: str, count: int, cache: epath.Path) -> epath.Path:
    """Return the file with the kept output for a row."""
    given = f"-{count}" if count else ""
    return cache / f"{method}-{topology.replace(':', '-')}{given}.json"


def plan(method: str, topology: str, count: int, cache: epath.Path) -> dict:
    """Return the output of `hypelora plan` for one row; run it if none is kept."""
    file = kept(method, topology, count, cache)
    if not file.exists():
        run = subprocess.run(
            [sys.executable, "-m", "hypelora_jax.cli", "plan"]
            + command(method, topology, count),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if run.returncode not in (0, 1):
            sys.exit(
                f"scaling: hypelora plan exited with {run.returncode} for {topology}"
            )
        file.write_text(run.stdout)
    return json.loads(file.read_text())


def row(method: str, found: dict) -> list[str]:
    """Return the cells of one row."""
    sizes, line = found["bytes_per_device"], found["roofline"]
    moved = sum(found["collective_bytes"].values())
    rate = found["global_batch"] / found["roofline_seconds"]
    return [
        method,
        found["topology"],
        str(found["chips"]),
        str(found["global_batch"]),
        str(found["conditions"]),
        *(f"{sizes[name] / 2**20:.0f}" for name in ("arguments", "temporaries")),
        f"{sizes['peak'] / 2**30:.2f} of {found['hbm_bytes'] / 2**30:.0f}",
        f"{moved / 1e6:.3f}",
        *(f"{line[name] * 1e3:.3g}" for name in ("compute", "hbm", "ici")),
        found["bound"],
        f"{found['mfu']:.0%}",
        f"{rate:,.0f}",
    ]


COLUMNS = (
    "method",
    "slice",
    "chips",
    "sequences a step",
    "conditions a step",
    "arguments, MiB",
    "temporaries, MiB",
    "peak, GiB",
    "collectives, MB",
    "compute, ms",
    "HBM, ms",
    "ICI, ms",
    "bound",
    "MFU at most",
    "sequences/s at most",
)


def table(rows: list[list[str]]) -> str:
    """Return the rows as a Markdown table."""
    rule = ["---:"] * len(COLUMNS)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, rule, *rows))


def page(found: dict[tuple[str, str, int], dict]) -> str:
    """Return the text of docs/scaling.md, which names the rows that were not run."""
    one = {(m, t): f for (m, t, count), f in found.items() if not count}
    main = [row(m, f) for (m, _), f in one.items() if m == "hyper_mlp"]
    others = [row(m, f) for (m, t), f in one.items() if t == "v5e:16x16"]
    given = [row(m, f) for (m, _, count), f in found.items() if count]
    flags = " \\\n        ".join(command("hyper_mlp", "v5e:4x4"))
    template = (Path(__file__).parent / "scaling.md.in").read_text()
    return template.format(
        date=datetime.date.today(),
        cores=os.cpu_count(),
        flags=flags,
        main=table(main),
        others=table(others),
        given=table(given),
        missing=missing(found),
        compared=compared(one),
    )


def compared(found: dict[tuple[str, str], dict]) -> str:
    """Return a sentence on the bytes that the methods move on 256 chips, or ""."""
    methods = ("full", "hyper_mlp", "lora")
    if any((m, "v5e:16x16") not in found for m in methods):
        return ""
    moved = [sum(found[m, "v5e:16x16"]["collective_bytes"].values()) for m in methods]
    full, hyper, lora = (f"{n / 1e6:,.1f} MB" for n in moved)
    less = f"{moved[0] / moved[1]:,.0f} times less"
    return (
        f" A step moves {full}\nwith full fine-tuning, {hyper} with the hyper-network "
        f"({less}), {lora} with LoRA."
    )


def missing(found: dict[tuple[str, str, int], dict]) -> str:
    """Return a line that names the missing rows, or "" if there are none."""
    left = [
        f"{m} on {t} ({n} conditions)" for m, t, n in CASES if (m, t, n) not in found
    ]
    return f"Not run yet: {', '.join(left)}.\n\n" if left else ""


def main() -> None:
    """Write the page from all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", action=PathFlag, default="runs/scaling")
    parser.add_argument("--kept", action="store_true", help="only rows kept already")
    args = parser.parse_args()
    cache = epath.Path(args.cache)
    cache.mkdir(parents=True, exist_ok=True)
    cases = [c for c in CASES if not args.kept or kept(*c, cache).exists()]
    found = {case: plan(*case, cache) for case in cases}
    PAGE.write_text(page(found))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
