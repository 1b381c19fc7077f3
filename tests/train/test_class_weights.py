"""Class weights in runs: recall of a rare class, the record, and what they change."""

import numpy as np
import pytest

from hypelora_jax.commands.shared import continuation
from hypelora_jax.config.settings import LossConfig, from_dict
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.objectives.regression import number_loss
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import loop
from hypelora_jax.train import session as session_lib

# A rare text (10 %) has a z with probability 0.8, another one with 0.2: with a z it is
# rare with probability 0.31, and if both classes weigh the same with 0.8.
SHARE, WITH_Z = (0.9, 0.1), (0.2, 0.8)


def corpus(path, rows, seed):
    draw = np.random.default_rng(seed)
    label = (np.arange(rows) % 10 == 0).astype(int)
    lines = ["text,label"]
    for y in label:
        letters = draw.choice(list("abcde"), 6)
        if draw.random() < WITH_Z[y]:
            letters[draw.integers(6)] = "z"
        lines.append(f"{''.join(letters)},{('common', 'rare')[y]}")
    path.write_text("\n".join(lines))
    return str(path)


def settings(folder, weights, **sections):
    splits = {"train": 800, "calibration": 200, "validation": 400}
    files = {
        name: corpus(folder / f"{name}.csv", rows, seed)
        for seed, (name, rows) in enumerate(splits.items())
    }
    given = {
        "method": "full",
        "model": {"path": "random:tiny"},
        "data": {"source": "files", "max_length": 16, **files},
        "loss": {"class_weights": weights},
        "optim": {"num_epochs": 4, "batch_size": 32, "lr": 3e-3},
    }
    return from_dict(given | sections)


def session_of(config):
    data = session_lib.load_corpus(config)
    return session_lib.with_data(session_lib.open_session(config, data.task), data)


def recall(config, workdir):
    """Share of the rare examples of validation that a trained run recognises."""
    session, run = session_of(config), Run.create(workdir)
    continuation.check_or_begin(run, session, None)
    checkpoint, _ = loop.train(session, run, progress=False)
    data = session.datasets["validation"]
    logits = evaluation.of_checkpoint(run, session, checkpoint).answer(data).logits
    return np.mean(np.argmax(logits[data.label == 1], axis=1) == 1)


@pytest.mark.parametrize(
    ("weights", "recorded", "least", "most"),
    [("none", None, 0, 0.1), ("balanced", [5 / 9, 5.0], 0.6, 0.9)],
)
def test_balanced_weights_find_the_rare_class(weights, recorded, least, most, tmp_path):
    config = settings(tmp_path, weights)
    assert least <= recall(config, tmp_path / "run") <= most
    record = records.read_record(Run.open(tmp_path / "run"))
    assert record.get("class_weights") == recorded


def test_a_resumed_run_wants_the_weights_that_it_began_with(tmp_path):
    config, run = settings(tmp_path, "balanced"), Run.create(tmp_path / "run")
    continuation.check_or_begin(run, session_of(config), None)
    record = records.read_record(run)
    continuation.check_or_begin(run, session_of(config), record)
    file = tmp_path / "train.csv"
    file.write_text(file.read_text().replace(",rare", ",common", 40))
    wanted = r"the data has changed .*class_weights was \[0.5555555555555556, 5"
    with pytest.raises(UserError, match=wanted):
        continuation.check_or_begin(run, session_of(config), record)


def test_numbers_of_a_regression_have_no_classes_to_weigh():
    with pytest.raises(
        UserError, match="class_weights is 'balanced', but the loss mse"
    ):
        number_loss(LossConfig(class_weights="balanced"))
