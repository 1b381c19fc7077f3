"""How long runs may be: hand numbers, and a run that is really measured."""

import pace
import pytest
from etils import epath

from hypelora_jax.config.settings import from_dict
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.train import scoring
from hypelora_jax.train import session as session_lib

FAST = pace.Pace(once=20, step=0.1, judging=5, steps=100, examples=3200, batch=32)
SLOW = FAST._replace(step=0.2)


def test_seconds_by_hand():
    assert FAST.seconds(3, 3200) == pytest.approx(20 + 3 * (10 + 5))
    assert FAST.seconds(2, 1600) == pytest.approx(20 + 2 * (5 + 5))
    assert FAST.seconds(1, 9999) == pytest.approx(20 + 15), "there are no more"


@pytest.mark.parametrize(
    ("minutes", "wanted"),
    [  # both together: 40 s once, 40 s an epoch
        (4.0, (5, 3200)),
        (100.0, (80, 3200)),
        (2.0, (2, 3200)),
        (1.5, (2, 1600)),  # 40 + 2 * (10 + 30 * share)
        (1.25, (2, 800)),
    ],
)
def test_all_rows_get_the_longest_equal_length(minutes, wanted):
    paces = {"fast": FAST, "slow": SLOW}
    assert pace.fit(paces, minutes, 80) == wanted
    spent = sum(p.seconds(*wanted) for p in paces.values())
    assert spent <= 60 * minutes


def test_never_more_epochs_than_asked_for():
    assert pace.fit({"fast": FAST}, 100, 3) == (3, 3200)
    assert pace.fit({"fast": FAST}, 0.55, 1) == (1, 2560)


def test_too_few_minutes_say_how_many_are_wanted():
    with pytest.raises(UserError, match=r"0.4 minutes are too few for fast; .* 0.5 "):
        pace.fit({"fast": FAST}, 0.4, 80)


def test_a_run_is_measured_and_leaves_nothing(tmp_path):
    settings = from_dict(
        {
            "method": "lora",
            "model": {"path": "random:tiny"},
            "data": {"source": "synthetic", "num_examples": 96, "max_length": 32},
            "lora": {"rank": 2},
            "optim": {"num_epochs": 50, "batch_size": 16},
        }
    )
    found = pace.measure(settings, epath.Path(tmp_path))
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task)
    session = session_lib.with_data(session, corpus)
    assert (found.steps, found.batch) == (session.steps_per_epoch, 16)
    assert found.examples == len(session.datasets["train"].ids)
    assert 0 < found.step < 1 and found.once > pace.REPORT and found.judging > 0
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_by_score_is_the_first_of_equals():
    task = Task("t", "classification", ("a", "b"), ("accuracy", "f1"), False)
    epochs = [
        {"accuracy": 0.9, "f1": 0.1, "nll": 0.1},
        {"accuracy": 0.5, "f1": 0.6, "nll": 0.3},
        {"accuracy": 0.5, "f1": 0.6, "nll": 0.2},
    ]
    how = [
        (
            by,
            [
                scoring.selection(by, "nll", task.metrics, i + 1, e)
                for i, e in enumerate(epochs)
            ],
        )
        for by in ("validation_score", "validation", "last")
    ]
    best = {by: min(found, key=lambda s: s.score) for by, found in how}
    chosen = {by: found.index(best[by]) for by, found in how}
    assert chosen == {"validation_score": 1, "validation": 0, "last": 2}
    assert all(
        s.loss == e["nll"] for _, f in how for s, e in zip(f, epochs, strict=True)
    )
