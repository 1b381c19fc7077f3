"""Measure the time of metrics and intervals, and compare with other packages.

    python benchmarks/metrics.py [--rows=100000] [--many=1000000]

Programs are compiled before they are timed, and the script prints both times. It needs
the extra `bench`. netcal and the reference's loops compute only a few of the numbers,
without intervals.
"""

import argparse
import sys
import time
import warnings

import numpy as np

from hypelora_jax.calibration import bootstrap, metrics, replicas

MAIN = (
    *("nll", "brier", "accuracy", "ece", "ece_mass", "classwise_ece", "mce"),
    *("ace", "ace_per_class", "aurc"),
)
SLOW = ("smooth_ece", "kernel_ce")


def drawn(n, classes=3):
    chance = np.random.default_rng(0)
    probs = chance.dirichlet(np.full(classes, 0.7), n)
    labels = (chance.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    return probs, np.minimum(labels, classes - 1)


def clocked(name, f):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:58s} {wall:8.2f} s   {cpu:8.2f} s of CPU", flush=True)
    return out


def ours(rows, names, number):
    what = f"{len(names)} metrics, {number} replicas"
    at_once = replicas.at_once(*rows[0].shape, names)
    # All chunks have the same size, so this compiles the program for all of them.
    clocked(
        f"  {what}: first chunk, compiles",
        lambda: replicas.draw(*rows, None, names, at_once),
    )
    return clocked(
        what, lambda: bootstrap.intervals(*rows, names=names, replicas=number)
    )


def reference_loops(probs, labels, bins=10):
    """Compute ECE, class-wise ECE and MCE like the reference, with a mask per bin."""
    edges = np.linspace(0, 1, bins + 1)

    def gaps(conf, hit):
        for m, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            held = ((conf > low) if m else (conf >= low)) & (conf <= high)
            if held.any():
                yield held.mean(), abs(conf[held].mean() - hit[held].mean())

    top = list(gaps(probs.max(axis=1), probs.argmax(axis=1) == labels))
    classes = range(probs.shape[1])
    by_class = [sum(w * g for w, g in gaps(probs[:, c], labels == c)) for c in classes]
    return sum(w * g for w, g in top), np.mean(by_class), max(g for _, g in top)


def netcals(probs, labels, bins=10):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import netcal.metrics as theirs
        except ImportError:
            sys.exit("netcal is not installed; run pip install 'hypelora-jax[bench]'")
    measures = (
        theirs.ECE(bins),
        theirs.ECE(bins, equal_intervals=False),
        theirs.MCE(bins),
    )
    clocked(
        "netcal: ECE, ECE of equal mass, MCE, no replicas",
        lambda: [m.measure(probs, labels) for m in measures],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    args = parser.parse_args()
    rows, many = drawn(args.rows), drawn(args.many)
    print(f"{args.rows} x 3")
    ours(rows, MAIN, 1000)
    ours(rows, SLOW, 200)
    clocked("all metrics, no replicas", lambda: metrics.compute_all(*rows))
    clocked("the reference's loops, no replicas", lambda: reference_loops(*rows))
    netcals(*rows)
    print(f"{args.many} x 3")
    clocked("all metrics, no replicas", lambda: metrics.compute_all(*many))
    clocked("the reference's loops, no replicas", lambda: reference_loops(*many))


if __name__ == "__main__":
    main()
