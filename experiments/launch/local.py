"""Start N processes of experiments/train.py on this machine, as one program.

    python experiments/launch/local.py --processes=2 -- --config=smoke --workdir=DIR

The flags after `--` go to experiments/train.py. --devices=K gives each process K CPU
devices. SIGTERM and Ctrl-C reach all processes. When one process fails, the others get
SIGTERM, and SIGKILL after --grace seconds. The exit code comes from the first process
that failed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "train.py"


def start(count: int, devices: int, flags: list[str]) -> list[subprocess.Popen]:
    """Start all processes; rank 0 is the coordinator on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)} if devices else None
    command = [sys.executable, str(TRAIN), *flags]
    place = f"--distributed=127.0.0.1:{port},{count}"
    return [
        subprocess.Popen([*command, f"{place},{rank}"], env=env)
        for rank in range(count)
    ]


def wait(processes: list[subprocess.Popen], grace: float) -> int:
    """Wait for all; return 0, or the exit code of the first process that failed."""
    code, limit = 0, None
    while None in (codes := [p.poll() for p in processes]):
        failed = [c for c in codes if c]
        if failed and limit is None:
            code, limit = failed[0], time.monotonic() + grace
            for p in processes:
                p.terminate()
        if limit is not None and time.monotonic() > limit:
            for p in processes:
                p.kill()
        time.sleep(0.1)
    code = code or next((c for c in codes if c), 0)
    return 128 - code if code < 0 else code  # as a shell reports a signal


def main() -> int:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices", type=int, default=0, metavar="K")
    parser.add_argument("--grace", type=float, default=120, metavar="SECONDS")
    parser.add_argument("train", nargs="+", help="-- and flags of experiments/train.py")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f"--processes is {args.processes}; expected at least 1")
    processes = start(args.processes, args.devices, args.train)

    def pass_on(number: int, _) -> None:
        for p in processes:
            p.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to all
    return wait(processes, args.grace)


if __name__ == "__main__":
    sys.exit(main())
