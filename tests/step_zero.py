"""Run folders without training: tiny sessions, noise on every leaf, saved at step 0."""

import jax
import tiny

from hypelora_jax import files, trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.data.tasks import Task
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.run.paths import Run
from hypelora_jax.train import loop
from hypelora_jax.train import session as session_lib
from hypelora_jax.types import Adapter

TASKS = {
    "binary": Task("toy", "classification", ("no", "yes"), ("accuracy",), False),
    "three": Task("toy", "classification", ("a", "b", "c"), ("accuracy",), True),
    "regression": Task("toy", "regression", (), ("pearson",), True),
}
HYPER = {"widths": (11, 7), "cond_dim": 5, "width": 16, "heads": 2, "depth": 1}
PATTERNS = {  # sites of three ranks and three alphas, and one that is left out
    "targets": ("q", "v", "up"),
    "exclude": r".*layer\.0\.intermediate.*",
    "rank_pattern": {r"layer\.0\..*query": 1, "value": 4},
    "alpha_pattern": {"q": 7.5, r"layer\.1\.attention.self.value": 2},
}
MODES = {  # name -> (method, sections)
    "lora": ("lora", {}),
    "lora_frozen_a": ("lora_frozen_a", {}),
    "mlp": ("hyper_mlp", {}),
    "mlp_fixed": ("hyper_mlp", {"hyper": {"a": "fixed"}}),
    "mlp_random": ("hyper_mlp", {"hyper": {"a": "random"}}),
    "mlp_blended": (
        "hyper_mlp",
        {"blend": {"a": "add", "b": "multiply", "alpha": 0.3, "b_init": "lora"}},
    ),
    "transformer": ("hyper_transformer", {"hyper": {"ff": 24}}),
    "transformer_fixed": ("hyper_transformer", {"hyper": {"a": "fixed", "ff": 24}}),
    "subset": ("lora", {"lora": {"layers": (1,), "targets": ("q", "v", "up")}}),
    "hyper_and_static": ("hyper_mlp", {"hyper": {"layers": (1,)}}),
    "down_alone": ("lora", {"lora": {"targets": ("k", "down"), "alpha": 3.0}}),
    "uneven": (
        "lora",
        {
            "lora": {
                "targets": r"encoder\.layer\.(0\..*query|1\..*(value|output.dense))"
            }
        },
    ),
    "rslora": ("hyper_mlp", {"lora": {"rslora": True, "targets": "all-linear"}}),
    "patterns": ("lora", {"lora": PATTERNS}),
    "patterns_mlp": (
        "hyper_mlp",
        {"hyper": {"layers": (1,)}, "lora": PATTERNS | {"rslora": True}},
    ),
    "patterns_transformer": (
        "hyper_transformer",
        {"hyper": {"ff": 24}, "lora": PATTERNS},
    ),
}


def settings(mode: str = "lora", model: str = "random:tiny", **more) -> Settings:
    method, sections = MODES[mode]
    given = {
        "method": method,
        "model": {"path": model},
        "data": {"source": "files", "max_length": 32},
        "hyper": HYPER | sections.get("hyper", {}),
        "lora": {"rank": 3, "alpha": 5.0} | sections.get("lora", {}),
        "blend": sections.get("blend", {}),
    }
    return from_dict(given | more)


def session(config: Settings, task: str = "binary", by: float = 0.1):
    """A session whose own leaves, head included, are all noisy."""
    made = session_lib.open_session(config, TASKS[task])
    params = trees.union(made.trainable, made.frozen)
    own = {n: x for n, x in params.items() if n != "backbone"}
    params = params | tiny.shaken(own, by=by)
    trainable, frozen = made.model.split(params)
    return made._replace(trainable=trainable, frozen=frozen)


def save(path, made, temperature: float | None = None):
    """A run folder at step 0 of a session."""
    run, made = Run.create(path), made._replace(edges=(16, 32))
    files.write_json(run.config_file, session_lib.record_of(made))
    loop.begin(made, run)
    if temperature:
        text = calibrators.to_json(calibrators.Temperature(temperature))
        files.write_whole(run.calibrator_file, text)
    return run.path


def run_folder(path, mode="lora", task="binary", temperature=None, **more):
    return save(path, session(settings(mode, **more), task), temperature)


def logits(workdir, batch):
    """Raw logits of a run folder for ids, mask and types."""
    return of_run(evaluation.open_fitted(str(workdir)), batch)


def of_run(run: Fitted, batch):
    params = trees.union(run.trainable, run.frozen)
    lora = run.forward.adapt(params, run.alpha, {})
    rows = {n: batch[n] for n in ("ids", "mask", "types")}
    return jax.device_get(run.forward.classify(params, lora, rows))


def without_adapter(workdir, batch):
    """Logits of a run folder's base and head alone."""
    run = evaluation.open_fitted(str(workdir))
    params = trees.union(run.trainable, run.frozen)
    rows = {n: batch[n] for n in ("ids", "mask", "types")}
    return jax.device_get(run.forward.classify(params, Adapter({}), rows))


def batch(rows: int = 8, tokens: int = 11):
    """Rows for all 8 devices of the tests."""
    return tiny.batch(rows, tokens)
