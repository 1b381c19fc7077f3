"""Runs that learn given adapters: what they write, report, refuse and start."""

import dataclasses
import json
import shutil

import adapter_sets
import jax
import numpy as np
import process
import pytest
from etils import epath

from hypelora_jax import cli, families
from hypelora_jax import model as model_lib
from hypelora_jax.adapters import gram
from hypelora_jax.config.settings import LoraConfig, from_dict
from hypelora_jax.data.tasks import TaskSet, unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.families.sequence_head import sequence_head
from hypelora_jax.interop import base as bases
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import read
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train.checkpoint import warm_start
from hypelora_jax.train.conditioning import given_adapters, recovery, targets
from hypelora_jax.train.session import load_corpus, open_session, with_data


def trained(folder, *flags, heads=False):
    file = adapter_sets.write(folder, heads)
    argv = ["train", *adapter_sets.FLAGS, f"--config.tasks.file={file}", *flags]
    assert cli.main([*argv, f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that learns four adapters with heads of their own."""
    folder = tmp_path_factory.mktemp("given")
    return trained(folder, "--config.head.kind=separate", heads=True)


def metrics(run, split="test"):
    return json.loads((run / "eval" / split / "metrics.json").read_text())


@pytest.mark.soak
def test_the_adapters_are_recovered_and_the_log_says_how_well(learned):
    rows = [r for r in process.rows(learned) if r["split"] == "calibration"]
    assert len(rows) == 2 and rows[-1]["delta_r2"] > 0.9
    assert rows[-1]["delta_cosine"] > 0.95
    assert rows[-1]["held_out_delta_r2"] < rows[-1]["delta_r2"]
    assert -1 <= rows[-1]["held_out_delta_cosine"] <= 1
    found = metrics(learned)
    assert found["delta_r2"] == pytest.approx(rows[-1]["delta_r2"], abs=1e-6)
    assert set(found["adapters"]) == set(adapter_sets.NAMES[:4]) == set(found["tasks"])
    assert all(one["delta_r2"] > 0.8 for one in found["adapters"].values())
    new = metrics(learned, "held_out_test")
    assert new["delta_r2"] == pytest.approx(rows[-1]["held_out_delta_r2"], abs=1e-6)
    assert set(new["adapters"]) == {"new"}


@pytest.mark.soak
def test_the_adapters_need_not_be_there_to_evaluate(learned, tmp_path):
    before = metrics(learned)
    hidden = learned.parent / "hidden"
    (learned.parent / "one").rename(hidden)
    try:
        assert cli.main(["evaluate", f"--workdir={learned}", "--split=test"]) == 0
    finally:
        hidden.rename(learned.parent / "one")
    after = metrics(learned)
    assert after["delta_r2"] == pytest.approx(before["delta_r2"], abs=1e-6)
    assert after["nll"] == pytest.approx(before["nll"], abs=1e-6)


@pytest.mark.soak
def test_each_task_has_the_head_of_its_adapter(learned):
    fitted = evaluation.open_fitted(str(learned))
    head, base = fitted.frozen["head"], fitted.session.base
    assert head["out"]["kernel"].shape[0] == len(adapter_sets.NAMES)
    layout = families.of(base.config).sequence
    one = sequence_head(layout, base.config, 2)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(6, 3, base.config.width)).astype(np.float32)
    task = np.array([4, 0, 2, 2, 1, 3], np.int32)
    parts = fitted.session.model.parts
    got = parts.head.apply(head, hidden, {"task": task})
    for i, k in enumerate(task):
        own = adapter_sets.head_of(int(k))
        wanted = one.apply(own, hidden[i : i + 1], {})[0]
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)


@pytest.mark.soak
def test_a_run_that_goes_on_ends_with_the_same_bits(learned, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(learned, again)
    last = max(Run.open(again).checkpoints.iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(last)
    (again / "summary.json").unlink()
    file = learned.parent / "given.json"
    argv = ["train", *adapter_sets.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.head.kind=separate", f"--workdir={again}"]
    assert cli.main(argv) == 0
    a, b = (evaluation.open_fitted(str(run)) for run in (learned, again))
    one, two = adapter_sets.leaves(a.trainable), adapter_sets.leaves(b.trainable)
    assert one.keys() == two.keys() and a.step == b.step
    assert all(one[path].tobytes() == two[path].tobytes() for path in one)
    logits = [
        read(Run.open(r).predictions_file("test")).logits for r in (learned, again)
    ]
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.soak
def test_other_adapters_are_refused_when_a_run_goes_on(tmp_path, capsys):
    flags = ("--config.optim.num_epochs=1", "--config.tasks.steps=2")
    run = trained(tmp_path, *flags)
    (run / "summary.json").unlink()
    adapter_sets.adapter(tmp_path / "two", seed=17)
    argv = [
        "train",
        *adapter_sets.FLAGS,
        f"--config.tasks.file={tmp_path / 'given.json'}",
    ]
    assert cli.main([*argv, *flags, f"--workdir={run}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the data has changed since" in line and "(adapters was" in line


def test_recovery_is_that_of_the_deltas():
    """The sums of tasks give the R^2 of `gram.recovery`, and the cosine by hand."""
    rng, sites = np.random.default_rng(0), {"q": (5, 4), "v": (3, 6)}

    def some(count):
        lead = (2, count)
        return {
            m: {
                "a": rng.normal(size=(*lead, i, 2)).astype(np.float32),
                "b": rng.normal(size=(*lead, 2, o)).astype(np.float32),
            }
            for m, (i, o) in sites.items()
        }

    made, wanted = some(3), some(3)
    made = jax.tree.map(lambda x, y: 0.2 * x + y, made, wanted)
    mean = gram.mean(wanted)
    mesh = make_mesh(from_dict({}).mesh)
    found = recovery._measured(mesh)(made, wanted, mean)
    sums = recovery.Sums(*(np.asarray(x, np.float64) for x in found))
    both = recovery._recovery(sums, range(3))
    whole = float(gram.recovery(made, wanted, mean).whole)
    assert both["delta_r2"] == pytest.approx(whole, abs=1e-5)
    dense = [
        np.concatenate([(f["a"] @ f["b"])[:, 1].ravel() for f in one.values()])
        for one in (made, wanted)
    ]
    cosine = dense[0] @ dense[1] / np.prod([np.linalg.norm(x) for x in dense])
    one = recovery._recovery(sums, [1])
    assert one["delta_cosine"] == pytest.approx(cosine, abs=1e-5)
    same = sums._replace(total=np.zeros(3))  # all are the mean adapter
    assert set(recovery._recovery(same, [0])) == {"delta_cosine"}
    assert recovery._recovery(sums._replace(given=np.zeros(3)), [0]) == {}


# ---------------------------------------------------------------- what is refused


def checked(folder, tasks, *, sections=(), heads="classes"):
    """What `with_targets` makes of a set of tasks on the tiny model."""
    base = bases.resolve("random:tiny")
    task = unnamed(2)._replace(tasks=len(tasks.names), condition=32)
    tree = {
        "loss": {"objective": "reconstruction"},
        "condition": {"source": "text"},
        "head": {"kind": heads},
        "lora": {"rank": 2},
        **dict(sections),
    }
    settings = from_dict(tree)
    model = model_lib.build(settings, base.config, task)
    frozen = {"head": model.parts.head.init(jax.random.key(0))}
    mesh = make_mesh(settings.mesh)
    return targets.with_targets(frozen, settings, model, base, tasks, mesh)


def tasks_of(folder, **changes):
    """Two training tasks and a held-out one without an adapter."""
    folders = [str(folder / name) for name in ("one", "two")]
    own = {
        "names": ("a", "b", "c"),
        "descriptions": (("A?",), ("B?",), ("C?",)),
        "labels": (("no", "yes"),) * 3,
        "held_out": (False, False, True),
        "weights": (1.0,) * 3,
        "adapters": (*folders, ""),
    }
    return TaskSet(**(own | changes))


@pytest.fixture
def two(tmp_path):
    """A folder with two adapters of one head."""
    for i, name in enumerate(("one", "two")):
        adapter_sets.adapter(tmp_path / name, seed=i)
    return tmp_path


def test_targets_are_the_scaled_deltas_and_zero_where_there_is_none(two):
    frozen = checked(two, tasks_of(two))
    rng = np.random.default_rng(0)  # as tests/given.py draws
    a = 0.3 * rng.normal(size=(given_layers(), 32, 2))[0]
    b = 0.3 * np.random.default_rng(1).normal(size=(given_layers(), 2, 32))[0]
    factors = frozen["targets"]["factors"]["q"]
    made = np.asarray(factors["a"][0] @ factors["b"][0])
    np.testing.assert_allclose(made[1], 4 / 2 * a @ b, atol=1e-4)
    assert not made[2].any()
    drawn = adapter_sets.head_of(0)
    np.testing.assert_array_equal(
        frozen["head"]["out"]["kernel"], drawn["out"]["kernel"]
    )


def given_layers():
    return bases.resolve("random:tiny").config.layers


def test_outputs_are_in_the_order_of_the_tasks_labels(two):
    first = adapter_sets.leaves(checked(two, tasks_of(two))["head"])
    for name in ("one", "two"):
        record = {"task": {"labels": ["yes", "no"]}}
        (two / name / "hypelora.json").write_text(json.dumps(record))
    turned = adapter_sets.leaves(checked(two, tasks_of(two))["head"])
    np.testing.assert_array_equal(turned["out/kernel"], first["out/kernel"][:, ::-1])


def broken(folder, what):
    """Change the second adapter."""
    path = folder / "two"
    if what == "gone":
        shutil.rmtree(path)
    elif what == "sites":
        adapter_sets.adapter(path, 1, lora=LoraConfig(rank=2, targets=("q", "k")))
    elif what == "zero":
        adapter_sets.adapter(path, 1, by=0)
    elif what == "head":
        adapter_sets.adapter(path, 1, head=5)
    elif what == "pickle":
        (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gone", "task b, adapter .*two: .* has no adapter_config.json"),
        ("pickle", "task b, adapter .*two: .*only adapter_model.bin, a pickle"),
        ("sites", r"task b, adapter .*two: it adapts k in \[0.*, and this run q in"),
        ("zero", "task b, adapter .*two: its deltas are all zero"),
        ("head", "task b, adapter .*two: its head differs from that of task a"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(two, what, words):
    broken(two, what)
    with pytest.raises(UserError, match=words) as error:
        checked(two, tasks_of(two))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "more", "words"),
    [
        ({"adapters": ()}, {}, "task a has no adapter, but config.loss.objective"),
        (None, {}, "the data are one task; expected data.source=tasks"),
        (
            {},
            {"sections": {"method": "lora", "condition": {}}},
            "makes one adapter for each task, but method=lora",
        ),
        (
            {},
            {"sections": {"condition": {"source": "instance"}}},
            "condition.source=instance does not",
        ),
        (
            {},
            {"sections": {"uncertainty": {"kind": "deep_ensemble"}}},
            "uncertainty.kind=deep_ensemble trains 5",
        ),
        (
            {},
            {"heads": "separate"},
            "task c, adapter none: it has no adapter, and this run a head",
        ),
    ],
)
def test_a_run_that_cannot_learn_adapters_is_one_line(two, tasks, more, words):
    some = tasks_of(two, **(tasks or {}))
    with pytest.raises(UserError, match=words):
        if tasks is None:
            targets.check(from_dict({}), None, None)
        checked(two, some, **more)


def test_an_adapter_of_another_base_model_is_refused(two, tmp_path):
    base = bases.resolve("random:tiny")._replace(folder=epath.Path(tmp_path), name="x")
    given_adapters._check_base("x", base)
    given_adapters._check_base("", base)
    with pytest.raises(UserError, match="its base model is random:tiny, and that of"):
        given_adapters._check_base("random:tiny", base)


@pytest.mark.soak
def test_the_command_ends_with_the_line(tmp_path, capsys):
    file = adapter_sets.write(tmp_path)
    shutil.rmtree(tmp_path / "three")
    argv = ["train", *adapter_sets.FLAGS, f"--config.tasks.file={file}"]
    assert cli.main([*argv, f"--workdir={tmp_path / 'run'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("hypelora: error: task three, adapter ")
    assert not (tmp_path / "run" / "config.json").exists()


# ---------------------------------------------------------------- a warm start


@pytest.mark.soak
def test_a_supervised_run_starts_from_the_learned_network(learned, tmp_path):
    wanted = evaluation.open_fitted(str(learned))
    old = wanted.session.settings
    settings = dataclasses.replace(
        old,
        loss=dataclasses.replace(old.loss, objective="auto"),
        head=dataclasses.replace(old.head, kind="classes"),
        ckpt=dataclasses.replace(old.ckpt, start=str(learned)),
    )
    corpus = load_corpus(settings)
    session = with_data(open_session(settings, corpus.task), corpus)
    started = warm_start.started(session)
    own, theirs = (
        adapter_sets.leaves(started.trainable),
        adapter_sets.leaves(wanted.trainable),
    )
    assert {p for p in own if p not in theirs} == {
        f"head/{part}/{leaf}"
        for part in ("dense", "out")
        for leaf in ("kernel", "bias")
    }
    for path, x in theirs.items():
        np.testing.assert_array_equal(own[path], x, err_msg=path)
    fresh = adapter_sets.leaves(session.trainable)
    assert any((fresh[path] != x).any() for path, x in theirs.items())
    np.testing.assert_array_equal(own["head/out/kernel"], fresh["head/out/kernel"])
    frozen = adapter_sets.leaves({"cond": started.frozen["cond"]})
    for path, x in adapter_sets.leaves({"cond": wanted.frozen["cond"]}).items():
        np.testing.assert_array_equal(frozen[path], x)


def start(learned, tmp_path, *flags):
    argv = ["train", *(f for f in adapter_sets.FLAGS if "loss.objective" not in f)]
    argv += ["--config.optim.num_epochs=1", "--config.tasks.steps=2", *flags]
    argv += [f"--config.tasks.file={learned.parent / 'given.json'}"]
    argv += [f"--config.ckpt.start={learned}", f"--workdir={tmp_path / 'next'}"]
    return cli.main(argv)


@pytest.mark.soak
def test_a_started_run_trains_and_goes_on_without_the_other(learned, tmp_path, capsys):
    assert start(learned, tmp_path) == 0
    record = json.loads((tmp_path / "next" / "config.json").read_text())
    assert record["config"]["ckpt"]["start"] == str(learned)
    (tmp_path / "next" / "summary.json").unlink()
    moved = learned.with_name("moved")
    learned.rename(moved)
    try:
        assert start(learned, tmp_path) == 0
    finally:
        moved.rename(learned)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.hyper.cond_dim=8"], "but that of this run is"),
        (["--config.hyper.cond=onehot"], "but it has cond/"),
        (["--config.seed=1"], "of the same base model"),
    ],
)
def test_a_run_of_other_shapes_is_no_start(learned, tmp_path, capsys, flags, words):
    assert start(learned, tmp_path, *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"config.ckpt.start is {learned}" in line and words in line
