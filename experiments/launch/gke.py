"""Run training as a JobSet on a TPU slice of a GKE cluster.

    python experiments/launch/gke.py --image=REGISTRY/hypelora:1 --topology=v5e:4x4 \
        -- --config=paper:task=sst2 --workdir=gs://BUCKET/runs/sst2

The flags after `--` go to experiments/train.py. --print shows the YAML and does nothing
else. The script needs kubectl with the cluster's credentials; the cluster needs JobSet
0.6 or newer.
"""

import argparse
import json
import re
import string
import subprocess
import sys
from pathlib import Path

# GKE's names, and the chips of a host in slices of several hosts
ACCELERATORS = {
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
TEMPLATE = Path(__file__).parent / "jobset.yaml"


def manifest(args: argparse.Namespace) -> str:
    """Return the YAML of the JobSet."""
    kind, _, shape = args.topology.partition(":")
    if kind not in ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        sys.exit(
            f"gke.py: error: --topology is {args.topology}; expected one of "
            f"{', '.join(ACCELERATORS)} with a shape, such as v5e:4x4"
        )
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        sys.exit(
            f"gke.py: error: --name is {args.name}; expected lower-case letters, "
            "digits and -"
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
        IMAGE=json.dumps(args.image),  # a JSON string is a valid YAML string
        # Kubernetes would replace $(NAME) in an argument; $$( is its escape for $(.
        ARGS=json.dumps([a.replace("$(", "$$(") for a in args.train]),
    )


def main() -> int:
    """Pass the JobSet to kubectl, and return the exit code of kubectl."""
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
            sys.exit(
                f"gke.py: error: {flag} is missing; expected -- {flag}=... among the "
                "flags of experiments/train.py"
            )
    text = manifest(args)
    if args.print:
        print(text)
        return 0
    return subprocess.run(
        ["kubectl", "apply", "-f", "-"], input=text.encode()
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
