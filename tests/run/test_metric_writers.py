"""Writers of scalars: what each of them gets, and what one that fails does."""

import json

import process
import pytest
from test_runs import few, rows

from hypelora_jax.commands import train as runs
from hypelora_jax.errors import UserError
from hypelora_jax.run import metric_writers
from hypelora_jax.run.metric_writers import Kind, Writer, Writers
from hypelora_jax.run.paths import Run


@pytest.fixture
def told(monkeypatch):
    """What the writer "recorder" is told; "failing" loses its network at step 3."""
    told = []

    def recorder(run, config, step):
        told.append(("open", config["seed"], step))
        return Writer(
            lambda scalars, step: told.append(("write", scalars, step)),
            lambda scalars, step: told.append(("finish", scalars, step)),
            lambda ended: told.append(("close", ended)),
        )

    def failing(run, config, step):
        def write(scalars, step):
            assert step <= 3, "it is off after its first failure"
            if step == 3:
                raise ConnectionError("no route\nto the tracker")

        def never(*args):
            raise AssertionError("it is off")

        return Writer(write, never, never)

    for name, function in (("recorder", recorder), ("failing", failing)):
        monkeypatch.setitem(metric_writers.WRITERS, name, Kind("json", "", function))
    return told


def test_every_writer_gets_everything_and_one_may_fail(told, tmp_path, caplog):
    names = ("failing", "tensorboard", "recorder")
    settings = few(seed=7, method="lora", log={"writers": names})
    summary = runs.train(settings, str(tmp_path / "run"), progress=False)
    train = {row["step"]: row["loss"] for row in rows(tmp_path / "run", "train")}
    assert len(train) >= 3
    warnings = [r for r in caplog.records if "log.writers" in r.getMessage()]
    assert [r.getMessage() for r in warnings] == [
        "log.writers: failing failed (ConnectionError: no route to the tracker) and is "
        "off from here on; metrics.jsonl has all values"
    ]
    assert told[0] == ("open", 7, 0) and told[-1] == ("close", True)
    written = [what[1:] for what in told if what[0] == "write"]
    losses = {step: v["train/loss"] for v, step in written if "train/loss" in v}
    assert losses == train
    ((_, final, last),) = (what for what in told if what[0] == "finish")
    assert last == max(train)
    assert final["final/test/nll"] == summary["metrics"]["test"]["nll"]
    board = process.board(tmp_path / "run")
    losses = {step: value for tag, step, value in board if tag == "train/loss"}
    assert losses == pytest.approx(train)
    tags = {tag for tag, *_ in board}
    assert {"validation/nll", "calibration/nll"} <= tags
    assert not any(tag.startswith("final") for tag in tags)


def test_a_stopped_run_says_so_to_its_writers(told, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Writers(("recorder",), Run.create(tmp_path), {"seed": 1}) as writers:
            writers.start(4)
            raise KeyboardInterrupt
    assert told == [("open", 1, 4), ("close", False)]


def refusal(settings, workdir) -> str:
    with pytest.raises(UserError) as error:
        runs.train(settings, str(workdir), progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_writer_that_is_not_installed_is_refused_at_once(monkeypatch, tmp_path):
    kind = metric_writers.WRITERS["wandb"]._replace(package="no_such_package")
    monkeypatch.setitem(metric_writers.WRITERS, "wandb", kind)
    settings = few(log={"writers": ("tensorboard", "wandb")})
    assert refusal(settings, tmp_path / "run") == (
        "config.log.writers has wandb, but the package no_such_package is not "
        "installed; expected the extra: pip install -e '.[wandb]', or log.writers "
        "without wandb"
    )
    assert not (tmp_path / "run").exists()


def test_a_writer_that_cannot_start_is_refused_before_the_first_step(
    told, monkeypatch, tmp_path
):
    def broken(run, config, step):
        raise ConnectionError("no\nkey")

    monkeypatch.setitem(metric_writers.WRITERS, "broken", Kind("json", "", broken))
    settings = few(method="lora", log={"writers": ("recorder", "broken")})
    message = refusal(settings, tmp_path / "run")
    assert message.startswith(
        "config.log.writers: broken cannot start (ConnectionError: no key)"
    )
    assert [what[0] for what in told] == ["open", "close"]
    assert not Run.open(tmp_path / "run").metric_log.exists()


def test_an_id_is_drawn_once_and_seeds_have_the_name_of_their_parent(tmp_path):
    run, seed = Run.create(tmp_path / "a"), Run.create(tmp_path / "b" / "seed_1")
    Run.open(tmp_path / "b").seeds_file.write_text("{}")
    own = metric_writers._identity(run)
    assert metric_writers._identity(run) == own != metric_writers._identity(seed)
    assert json.loads(run.identity_file.read_text()) == {"id": own}
    assert [metric_writers._title(x) for x in (run, seed)] == ["a", "b-seed_1"]


def test_one_name_is_a_tuple_of_one():
    assert few(log={"writers": "tensorboard"}) == few(log={"writers": ["tensorboard"]})
