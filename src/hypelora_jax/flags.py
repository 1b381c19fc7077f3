"""Flags of every command, as arguments of argparse; `cli.py` makes parsers of them."""

from typing import Any

from hypelora_jax.config import ranges

FLAGS: dict[str, dict[str, Any]] = {
    "config": {
        "required": True,
        "help": "NAME[:ARG=VALUE,...] of an installed config, or the path of a config "
        "file; --config.SECTION.FIELD=VALUE overrides a field",
    },
    "workdir": {"required": True, "metavar": "DIR", "help": "folder; may be gs://..."},
    "workdirs": {
        "required": True,
        "metavar": "DIR",
        "action": "append",
        "help": "folder of a run; give the flag once for each run",
    },
    "split": {
        "default": "validation",
        "help": "train, calibration, validation (the default) or test",
    },
    "input": {
        "default": "-",
        "metavar": "FILE",
        "help": "rows with texts: .jsonl, .csv or .tsv; - (the default) is stdin",
    },
    "rows_format": {
        "default": "",
        "choices": ranges.ROWS,
        "help": "of stdin, stdout and files whose suffix does not say it; jsonl",
    },
    "on_error": {
        "default": "stop",
        "choices": ranges.ON_ERROR,
        "help": "at a bad line: stop (the default), or skip it and say so",
    },
    "text": {"default": "", "metavar": "COLUMN", "help": "of the text; found by name"},
    "text_b": {"default": "", "metavar": "COLUMN", "help": "of the second text"},
    "abstain": {
        "type": float,
        "metavar": "P",
        "help": "give no label where the confidence is below P",
    },
    "method": {"default": "temperature", "choices": ranges.TO_CALIBRATE},
    "coverage": {"type": float, "help": "add sets that hold the label so often: 0.9"},
    "sets": {"choices": ranges.SETS, "help": "kind of these sets; thr"},
    "kind": {
        "required": True,
        "choices": ranges.AFTERWARDS,
        "help": "what predictions average over; docs/uncertainty.md",
    },
    "samples": {"type": int, "default": 5, "help": "members K; 5"},
    "dropout": {"type": float, "help": "mc_dropout: every rate; those of training"},
    "link": {"default": "mean_field", "help": "laplace: mean_field, probit or mc"},
    "by_class": {"action": "store_true", "help": "sets calibrated class by class"},
    "output": {"default": "-", "metavar": "FILE", "help": "- (the default) is stdout"},
    "html": {"default": "report.html", "metavar": "FILE", "help": "the HTML file"},
    "formats": {"default": "html,md,csv,tex,png", "help": "files to write beside it"},
    "redraws": {"default": 1000, "type": int, "help": "of the bootstrap, or 0"},
    "predictions": {"required": True, "metavar": "FILE", "help": ".npz, .csv, .jsonl"},
    "replicas": {"type": int, "default": 0, "help": "for intervals: 1000; 0: none"},
    "level": {"type": float, "help": "of the intervals; 0.95"},
    "bins": {"type": int, "default": 10, "help": "of calibration errors; 10"},
    "seed": {"type": int, "default": 0, "help": "of replicas and drawn labels; 0"},
    "topology": {"required": True, "help": "v5e:4x4, v5p:4x4x4, v6e:4x4, ...; cpu-N"},
    "run_config": {
        "help": "NAME[:ARG=VALUE,...] of an installed config, or the path of a config "
        "file; without it that of the run in --workdir, which goes on",
    },
    "own_config": {
        "help": "as in train; without it: that of the run or export, if there is one",
    },
    "export_format": {
        "default": "peft",
        "help": "peft: adapter and head (the default); merged: one whole model",
    },
    "folder": {
        "required": True,
        "metavar": "DIR",
        "help": "folder to write; must not exist, or be empty",
    },
    "calibrated": {
        "action": "store_true",
        "help": "divide the head's last layer by the fitted temperature, so that a "
        "plain softmax is calibrated",
    },
    "only": {
        "default": "",
        "metavar": "NAMES",
        "help": "of seeds or conditions, as seed_0,seed_2; all without it",
    },
    "adapter": {
        "required": True,
        "metavar": "DIR",
        "help": "folder with adapter_config.json and adapter_model.safetensors",
    },
    "model": {
        "default": "",
        "metavar": "PATH",
        "help": "base model; without it what the adapter names",
    },
    "host": {
        "default": "127.0.0.1",
        "help": "address to listen at; 127.0.0.1 (the default) is this machine alone",
    },
    "port": {"default": 8000, "type": int, "help": "8000; 0 takes a free one"},
    "max_batch": {
        "default": 32,
        "type": int,
        "help": "texts answered at once; 32. 1: batching is off",
    },
    "window_ms": {
        "default": 2.0,
        "type": float,
        "help": "milliseconds a text waits for company; 2",
    },
    "max_waiting": {"default": 1024, "type": int, "help": "texts in the queue; 1024"},
    "max_body": {"default": 1 << 20, "type": int, "help": "bytes of a body; 1 MiB"},
    "max_texts": {"default": 256, "type": int, "help": "of a request; 256"},
    "max_chars": {"default": 10_000, "type": int, "help": "of a text; 10000"},
    "rate": {
        "default": 1000.0,
        "type": float,
        "help": "requests a second of one address; 1000. 0: no limit",
    },
    "factors": {
        "default": "",
        "metavar": "FILE",
        "help": ".npz of what the reference does not save: A, initial_A, initial_B",
    },
}
SAMPLING = ("replicas", "level", "bins", "seed")
SETS = ("coverage", "sets", "by_class")
ROWS = ("input", "output", "rows_format", "on_error", "text", "text_b", "abstain")
PREDICT = ("workdir", *ROWS, *SETS)
EXPORT = ("workdir", "export_format", "folder", "calibrated", "only")
LIMITS = ("max_waiting", "max_body", "max_texts", "max_chars", "rate")
SERVE = (
    "workdirs",
    "host",
    "port",
    "max_batch",
    "window_ms",
    *LIMITS,
    "abstain",
    *SETS,
)
UNCERTAINTY = ("workdir", "kind", "samples", "dropout", "link", "folder")
IMPORT = ("adapter", "model", "workdir", "own_config", "factors")
# Keys of FLAGS that are not the flag.
NAMES = {"workdirs": "workdir", "html": "output", "redraws": "replicas"}
NAMES |= {
    "own_config": "config",
    "run_config": "config",
    "export_format": "format",
    "folder": "output",
}
NAMES |= {"rows_format": "format", "on_error": "on-error"}
