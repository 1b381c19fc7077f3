"""Runs training as a JobSet on a TPU slice of a GKE cluster.

    python experiments/launch/gke.py --image=REGISTRY/hypelora:1 --topology=v5e:4x4 \
        -- --config=paper:task=sst2 --workdir=gs://BUCKET/runs/sst2

What stands after `--` are flags of experiments/train.py. --print shows the YAML and
does nothing. Needs kubectl with the cluster's credentials, and JobSet 0.6 or newer in
the cluster.
"""

import argparse
import json
import re
import string
import subprocess
import sys
from pathlib import Path

# GKE's names, and chips a host has in slices of several hosts
ACCELERATORS = {
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
TEMPLATE = Path(__file__).parent / "jobset.yaml"


def manifest(args: argparse.Namespace) -> str:
    """The YAML of a JobSet."""
    kind, _, shape = args.topology.partition(":")
    if kind not in ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        sys.exit(
            f"gke.py: error: --topology={args.topology}; wanted one of "
            f"{', '.join(ACCELERATORS)} and a shape, as v5e:4x4"
        )
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        sys.exit(
            f"gke.py: error: --name={args.name}; wanted small letters, digits and -"
        )
    accelerator, per_host = ACCELERATORS[kind]
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return string.Template(TEMPLATE.read_text()).substitute(
        NAME=args.name,
        HOSTS=max(1, chips // per_host),
        CHIPS=min(chips, per_host),
        RESTARTS=args.restarts,
        GRACE=args.grace,
        ACCELERATOR=accelerator,
        TOPOLOGY=shape,
        IMAGE=json.dumps(args.image),  # JSON's strings are YAML's
        ARGS=json.dumps([a.replace("$(", "$$(") for a in args.train]),
    )


def main() -> int:
    """Hands the JobSet to kubectl; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--topology", required=True, help="v5e:4x4 or the like")
    parser.add_argument("--name", default="hypelora")
    parser.add_argument("--grace", type=int, default=300, help="seconds to save in")
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--print", action="store_true", help="show the YAML only")
    parser.add_argument("train", nargs="+", help="-- and flags of experiments/train.py")
    args = parser.parse_args()
    for flag in ("--config", "--workdir"):
        if not any(a == flag or a.startswith(f"{flag}=") for a in args.train):
            sys.exit(f"gke.py: error: no {flag}; wanted -- {flag}=...")
    text = manifest(args)
    if args.print:
        print(text)
        return 0
    return subprocess.run(
        ["kubectl", "apply", "-f", "-"], input=text.encode()
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
