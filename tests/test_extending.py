"""The code of docs/extending and of the guide runs, each entry one object in its table.

The ordinary commands work with each new entry, on eight devices (in this process) and
on one (in another). Nothing but the tables is touched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import documented
import extensions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import snippets
import source_tree
import test_tables
import tiny
from objectives import test_losses, test_optimum

from hypelora_jax import cli, families
from hypelora_jax.config import settings
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.hyper.conditioners import Sizes
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.objectives.losses import LOSSES

SMALL = (
    "--config.data.num_examples=128",
    "--config.data.max_length=16",
    "--config.data.pad_to_max=true",  # one length, so one program each
    "--config.optim.num_epochs=1",
    "--config.log.every_steps=1",
    "--config.hyper.widths=(8,)",
)
# name -> (flags of train, format of export; "": the entry has no Hugging Face form)
ENTRIES = {
    "family": (("--config.model.path=random:electra_tiny",), "peft"),
    "stack": (("--config.model.path=random:toy", "--config.lora.targets=q"), "peft"),
    "head": (("--config.head.kind=linear_probe",), ""),
    "conditioner": (("--config.condition.source=anchor",), "peft"),
    "objective": (("--config.loss.objective=absolute_error",), "peft"),
    "method": (("--config.method=biases",), "merged"),
    "loss": (("--config.loss.name=spherical",), "peft"),
}


def numbers(path: Path) -> tuple[str, ...]:
    """A file of texts whose label is a number, and the flags that train on it."""
    rng = np.random.default_rng(0)
    rows = [(f"{'good ' * n}film", n / 4) for n in rng.integers(0, 5, 200)]
    lines = [json.dumps({"text": text, "label": float(y)}) for text, y in rows]
    path.write_text("\n".join(lines) + "\n")
    return ("--config.data.source=files", f"--config.data.train={path}")


def commands(entries: tuple[str, ...], folder: Path) -> list[list[str]]:
    """train, evaluate, predict and, where it makes sense, export.

    Of one run with all the entries; the first one says how it is exported.
    """
    flags, kind = (
        sum((ENTRIES[name][0] for name in entries), ()),
        ENTRIES[entries[0]][1],
    )
    if "objective" in entries:
        flags = (*flags, *numbers(folder / "numbers.jsonl"))
    run, texts = str(folder / "run"), folder / "texts.jsonl"
    texts.write_text('{"text": "a good film"}\n{"text": "nothing"}\n')
    out = [
        ["train", "--config=smoke", f"--workdir={run}", *SMALL, *flags],
        ["evaluate", f"--workdir={run}"],
        [
            "predict",
            f"--workdir={run}",
            f"--input={texts}",
            f"--output={folder / 'answers.jsonl'}",
        ],
    ]
    if kind:
        target = f"--output={folder / 'exported'}"
        out.append(["export", f"--workdir={run}", f"--format={kind}", target])
    return out


def check(folder: Path, entry: str) -> dict:
    """What the commands left behind, and the metrics of validation."""
    rows = (folder / "answers.jsonl").read_text().splitlines()
    assert len(rows) == 2 and all("label" in json.loads(row) for row in rows)
    if ENTRIES[entry][1]:
        assert list((folder / "exported").glob("*.safetensors"))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    losses = [
        row["loss"]
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
    return summary["metrics"]["validation"]


# One run each; the loss, which the other entries cannot see, shares one.
RUNS = [("family", "loss"), *((n,) for n in ENTRIES if n not in ("family", "loss"))]


@pytest.mark.parametrize("entries", RUNS, ids="-".join)
def test_an_entry_of_a_table_is_all_it_takes(entries, tmp_path, monkeypatch, capsys):
    extensions.install(monkeypatch)
    for argv in commands(entries, tmp_path):
        assert cli.main(argv) == 0, capsys.readouterr().err
    entry = entries[0]
    judged = check(tmp_path, entry)
    assert judged["mae" if entry == "objective" else "nll"] > 0
    if not ENTRIES[entry][1]:
        target = f"--output={tmp_path / 'exported'}"
        capsys.readouterr()
        assert cli.main(["export", f"--workdir={tmp_path / 'run'}", target]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_same_on_one_device(tmp_path):
    runs = (("stack", "conditioner", "objective"), ("method", "loss"))
    runs += (("head", "family"),)
    assert sorted(sum(runs, ())) == sorted(ENTRIES)
    every = []
    for entries in runs:
        (tmp_path / entries[0]).mkdir()
        every += commands(entries, tmp_path / entries[0])
    done = subprocess.run(  # one process for all: importing jax takes seconds
        [sys.executable, extensions.__file__],
        input=json.dumps(every),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stderr
    for entries in runs:
        check(tmp_path / entries[0], entries[0])


def test_without_its_line_in_the_table_a_name_is_refused(tmp_path, capsys):
    for entry, (flags, _) in ENTRIES.items():
        folder = tmp_path / entry
        argv = ["train", "--config=smoke", f"--workdir={folder}", *SMALL, *flags]
        assert cli.main(argv) == 2, entry
        assert "expected one of" in capsys.readouterr().err


def test_the_names_of_the_entries_mean_nothing_else(monkeypatch):
    """A reader who adds an entry of a page sees tests/test_tables.py pass."""
    before = {(key.table, key.name) for key in test_tables.keys_of_tables()}
    extensions.install(monkeypatch)
    keys = test_tables.keys_of_tables()
    new = [key for key in keys if (key.table, key.name) not in before]
    assert len(new) == 6
    for module, tree in source_tree.sources().items():
        assert test_tables.uses(module, tree, new) == []


# What the pages define obeys the laws of its kind.

LOGITS, LABELS = jnp.array([[0.0, 0.0], [2.0, -1.0]]), jnp.array([0, 0])


def code_of(page: str, patch: pytest.MonkeyPatch) -> dict:
    return snippets.install(f"docs/extending/{page}.md", patch)


def test_the_loss_on_the_page_is_proper(monkeypatch):
    spherical = code_of("loss", monkeypatch)["spherical"]
    config = settings.LossConfig(name="spherical", temperature=2.0)
    built = class_loss(config).apply({}, 2 * LOGITS, LABELS)
    np.testing.assert_allclose(built, spherical(LOGITS, LABELS), rtol=1e-6)
    assert float(built[0]) == pytest.approx(-np.sqrt(0.5))
    truth = jax.nn.softmax(LOGITS)
    gradient = jax.grad(lambda z: jnp.sum(spherical(z, truth)))
    np.testing.assert_allclose(gradient(LOGITS), 0, atol=1e-6)
    elsewhere = gradient(LOGITS + jnp.eye(2))
    assert np.abs(elsewhere).max() > 0.01


def test_the_condition_on_the_page_is_one(monkeypatch):
    built = code_of("conditioning", monkeypatch)["anchor"]
    made = built(settings.from_dict({"condition": {"width": 5}}), Sizes(slots=6))
    params = made.init(jax.random.key(0))
    found = made.apply(params, {})
    assert found.vectors_USC.shape == (1, 1, made.width) == (1, 1, 5)
    assert found.row_B is None
    np.testing.assert_array_equal(found.vectors_USC[0, 0], params["anchor"]["vector"])


def test_the_head_on_the_page_is_its_last_layer_on_its_features(monkeypatch):
    code_of("head", monkeypatch)
    task, config = unnamed(3), settings.HeadConfig(kind="linear_probe")
    head = families.head(config, tiny.CONFIG, task, dtype="bfloat16")
    params = tiny.shaken(head.init(jax.random.key(0)))
    shape = (2, 5, tiny.CONFIG.width)
    hidden_BTD = jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)
    first = np.asarray(hidden_BTD[:, 0], np.float32)
    got = head.apply(params, hidden_BTD, {}, jax.random.key(2))
    wanted = first @ params["out"]["kernel"] + params["out"]["bias"][None]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(head.features(params, hidden_BTD), first)
    assert got.dtype == jnp.float32


def test_the_objective_on_the_page_by_hand(monkeypatch):
    build = code_of("objective", monkeypatch)["absolute_error"]
    made = build(settings.LossConfig(objective="absolute_error"), ())
    score = jnp.asarray([[2.0], [jnp.nan], [-1.0]])
    label, weight = jnp.asarray([5.0, 1.0, 0.5]), jnp.asarray([2.0, 0.0, 1.0])

    class Model:
        classify = staticmethod(lambda params, *rest: params)

    def loss(score):
        batch = {"label": label, "weight": weight}
        return made.sums(Model, score, None, batch, None)

    assert [float(x) for x in loss(score)] == [7.5, 3.0]
    gradient = jax.grad(lambda z: loss(z)[0])(score)
    np.testing.assert_array_equal(gradient, [[-2.0], [0.0], [-1.0]])
    start, update, merge, result, alone = made.judge
    parts = [update(start(), x, y) for x, y in ((score[:1], label[:1]),) * 2]
    unlabelled = update(start(), score[2:], np.asarray([np.nan]))
    assert result(merge(*parts), None) == {"n": 2, "mae": 3.0}
    assert alone(merge(*parts), None) == 3.0
    assert result(unlabelled, None) == {} and np.isnan(alone(unlabelled, None))
    with pytest.raises(UserError, match="no other fields"):
        build(settings.LossConfig(smoothing=0.1), ())


def test_the_change_of_the_guide(monkeypatch):
    made = snippets.install("CONTRIBUTING.md", monkeypatch)
    (name,) = [n for n in LOSSES if f"test_{n}_by_hand" in made]
    made[f"test_{name}_by_hand"]()
    for soft in (False, True):
        config = {"name": name}
        test_losses.test_weight_zero_is_dropping_the_row_even_one_of_nan(config, soft)
        test_losses.test_gradients_of_every_loss(config, soft)
    test_optimum.test_every_loss_has_a_claim()
    test_optimum.test_the_minimum_is_where_it_is_claimed(name)


PAGES = [f"docs/extending/{page}.md" for page in extensions.PAGES]


def test_every_page_of_the_folder_is_installed():
    folder = documented.ROOT / "docs" / "extending"
    assert sorted(PAGES) == sorted(f"docs/extending/{p.name}" for p in folder.glob("*"))


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_the_code_of_a_page_passes_the_lint(page):
    for snippet in snippets.of_page(page):
        if snippet.table:  # lines of a table are no file of their own
            continue
        own = documented.ROOT / snippet.path
        code = f"# {snippet.path}\n{snippet.code}"
        names = "--ignore=F821,D100" if own.exists() else "--ignore=D100"
        for command in (["format", "--check"], ["check", "--quiet", names]):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "ruff",
                    *command,
                    f"--stdin-filename={own}",
                    "-",
                ],
                input=code,
                capture_output=True,
                text=True,
                cwd=documented.ROOT,
            )
            assert done.returncode == 0, f"{snippet.path}: {done.stdout}{done.stderr}"
