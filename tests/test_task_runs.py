"""Runs of sets of tasks whose adapters are made from descriptions."""

import json
import re
import shutil

import flips
import numpy as np
import process
import pytest

from hypelora_jax import cli
from hypelora_jax.calibration import calibrators
from hypelora_jax.data import npz
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import read


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """A run of the flip problem."""
    return flips.trained(tmp_path_factory.mktemp("flip"))


def metrics(run, split="test"):
    return json.loads((run / "eval" / split / "metrics.json").read_text())


def test_the_right_description_decides_and_the_other_one_flips(flipped, capsys):
    tasks = metrics(flipped)["tasks"]
    assert set(tasks) == {"asks", "denies"}
    assert all(one["accuracy"] > 0.95 for one in tasks.values()), tasks
    capsys.readouterr()
    assert cli.main(["audit", f"--workdir={flipped}", "--replicas=50"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "cannot be told: there is no static to compare with" in line
    found = json.loads((flipped / "audit.json").read_text())
    assert found["split"] == "test" and found["tasks"] == ["asks", "denies"]
    assert found["n"] == 2 * flips.SIZES["test"]
    own = {name: one["accuracy"]["value"] for name, one in found["controls"].items()}
    assert own["matched"] > 0.95 and own["shuffled"] < 0.05 and own["negated"] < 0.05
    assert own["base_rate"] == pytest.approx(0.5, abs=0.1)
    assert found["margins"]["shuffled"]["nll"]["low"] > 1
    deltas = found["delta_variance"]
    assert deltas["conditions"] == 2 and 0.1 < deltas["whole"] < 1


def test_one_adapter_cannot_do_both(flipped, capsys):
    static = flipped.parent / "static"
    argv = ["audit", f"--workdir={flipped}", f"--train_static={static}"]
    file = flipped.parent / "audit.json"
    assert cli.main([*argv, "--replicas=50", f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    assert found["controls"]["static"]["accuracy"]["value"] == pytest.approx(0.5)
    assert found["margins"]["static"]["nll"]["low"] > 0.3
    record = json.loads((static / "config.json").read_text())
    assert record["config"]["method"] == "lora"
    assert record["total_steps"] == 224
    assert found["line"] in capsys.readouterr().out
    page = flipped.parent / "report.html"
    assert cli.main(["report", f"--workdir={flipped}", f"--output={page}"]) == 0
    assert found["line"] in page.read_text().replace("&#x27;", "'")
    again = [*argv, f"--static={static}"]
    assert cli.main(again) == 2
    assert "expected one of them" in capsys.readouterr().err


def oracle_of(flipped, task):
    """A run of one LoRA adapter on one task of the flip problem alone."""
    listed = json.loads((flipped.parent / "set.json").read_text())
    (one,) = (x for x in listed if x["name"] == task)
    del one["negations"]
    (flipped.parent / f"only_{task}.json").write_text(json.dumps([one]))
    argv = ["train", "--config=smoke:method=lora", "--config.data.source=tasks"]
    argv += [f"--config.tasks.file={flipped.parent}/only_{task}.json"]
    argv += ["--config.data.max_length=32", "--config.optim.num_epochs=14"]
    run = flipped.parent / f"oracle_{task}"
    assert cli.main([*argv, "--config.optim.lr=3e-3", f"--workdir={run}"]) == 0
    return run


def test_an_oracle_answers_the_rows_of_its_task(flipped, tmp_path, capsys):
    run = oracle_of(flipped, "denies")
    argv = ["audit", f"--workdir={flipped}", "--replicas=20", f"--json={tmp_path}/a"]
    assert cli.main([*argv, f"--oracle=denies={run}"]) == 0
    assert "oracles: adapters trained on the task" in capsys.readouterr().out
    found = json.loads((tmp_path / "a").read_text())["oracles"]
    assert found.keys() == {"denies"}
    own, matched = (
        found["denies"][n]["accuracy"]["value"] for n in ("oracle", "matched")
    )
    assert own == metrics(run)["accuracy"] > 0.8
    assert matched == metrics(flipped)["tasks"]["denies"]["accuracy"]
    # on the other task the same run is wrong wherever it was right
    assert cli.main([*argv, f"--oracle=asks={run}"]) == 0
    other = json.loads((tmp_path / "a").read_text())["oracles"]["asks"]
    assert other["oracle"]["accuracy"]["value"] == pytest.approx(1 - own)
    wrong = {
        f"{run}": "expected TASK=DIR",
        f"=x{run}": "expected TASK=DIR",
        f"claims={run}": "claims",
        "asks=https://x/y": "--oracle is the address",
    }
    for given, told in wrong.items():
        assert cli.main([*argv, f"--oracle={given}"]) == 2
        assert told in capsys.readouterr().err
    assert cli.main([*argv, *(f"--oracle=asks={run}" for _ in range(2))]) == 2
    assert "names the task asks twice" in capsys.readouterr().err


def test_the_log_has_the_margin_and_the_mean_of_the_tasks(flipped):
    rows = [r for r in process.rows(flipped) if r["split"] == "calibration"]
    assert len(rows) == 14
    assert rows[-1]["margin"] > 1 > abs(rows[0]["margin"]) / 5
    for row in rows:
        assert row["task_nll"] == pytest.approx(row["nll"], abs=1e-6)  # equal sizes
    best = Run.open(flipped).checkpoints
    assert best.exists()


def test_vectors_and_tasks_are_saved_with_the_run(flipped, monkeypatch):
    arrays = npz.read(flipped / "conditions.npz")
    assert arrays["descriptions"].shape[0] == 6
    assert arrays["condition.condition"].shape[0] == 2
    np.testing.assert_allclose(
        arrays["condition.condition"][0], arrays["descriptions"][:3].mean(0), rtol=1e-6
    )
    tasks = json.loads((flipped / "tasks.json").read_text())
    assert tasks["descriptions"][1] == list(flips.DESCRIPTIONS["denies"])

    def fail(*args):
        raise AssertionError("evaluation embeds no texts")

    from hypelora_jax.train.conditioning import text_encoder

    monkeypatch.setattr(text_encoder, "embed", fail)
    assert cli.main(["evaluate", f"--workdir={flipped}", "--split=validation"]) == 0


def test_a_run_without_a_set_cannot_be_audited(flipped, tmp_path, capsys):
    argv = ["train", "--config=smoke", "--config.data.num_examples=64"]
    more = ["--config.optim.num_epochs=1", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*argv, *more]) == 0
    assert cli.main(["audit", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "has no condition to audit" in capsys.readouterr().err


def test_changed_descriptions_are_refused_when_a_run_goes_on(tmp_path, capsys):
    file = flips.write(tmp_path)
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.optim.num_epochs=1", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(argv) == 0
    (tmp_path / "run" / "summary.json").unlink()
    text = (tmp_path / "set.json").read_text()
    (tmp_path / "set.json").write_text(text.replace("Is it good?", "Is it fine?"))
    assert cli.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the tasks have changed" in line and "tasks.json" in line


@pytest.mark.soak
@pytest.mark.fault("SIGKILL of a run of tasks", "goes on to the same bits")
def test_a_run_of_tasks_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    file = flips.write(tmp_path)
    flags = ("train", *flips.FLAGS, f"--config.tasks.file={file}")
    flags += ("--config.optim.num_epochs=2", "--config.ckpt.every_steps=7")
    _, err = process.survives_a_kill(tmp_path, 15, ("calibration", "test"), *flags)
    assert re.search(r"going on from step \d+ of 32", err)


def probabilities(folder, texts):
    import hypelora_jax

    answers = hypelora_jax.load(str(folder)).predict(texts)
    return np.array([one["probs"]["yes"] for one in answers])


TEXTS = ["the good film", "a bad song", "one good the", "film bad one"]


def test_an_adapter_for_a_described_task_is_a_run(flipped, tmp_path, capsys):
    argv = ["adapt", f"--workdir={flipped}"]
    told = {}
    for name, text in (("asks", "Is it good?"), ("denies", "Is it not good?")):
        capsys.readouterr()
        more = [f"--description={text}", f"--output={tmp_path / name}"]
        assert cli.main([*argv, *more]) == 0
        told[name] = json.loads(capsys.readouterr().out)
    for name, one in told.items():
        assert one["nearest"] == name and one["distance"] == pytest.approx(0, abs=1e-6)
        assert one["labels"] == ["no", "yes"]
    yes = {name: probabilities(tmp_path / name, TEXTS) for name in told}
    assert (yes["asks"] > 0.5).tolist() == [True, False, True, False]
    assert (yes["denies"] > 0.5).tolist() == [False, True, False, True]
    argv = ["export", f"--workdir={tmp_path / 'asks'}", f"--output={tmp_path / 'out'}"]
    assert cli.main(argv) == 0
    argv = ["import", f"--adapter={tmp_path / 'out'}", "--model=random:tiny"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    del argv


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A short run whose descriptions have a sign and are whitened."""
    flags = ("condition.sign=2", "condition.whiten=true", "optim.num_epochs=2")
    own = (f"--config.{flag}" for flag in flags)
    return flips.trained(tmp_path_factory.mktemp("signed"), *own)


def test_a_run_keeps_the_whitening_of_its_descriptions(signed):
    from hypelora_jax import trees
    from hypelora_jax.evaluate import evaluation
    from hypelora_jax.train.conditioning import task_conditions, wordings

    fitted = evaluation.open_fitted(str(signed))
    session, settings = fitted.session, fitted.session.settings
    kept = trees.flatten(fitted.frozen)[wordings.WHITENING]
    moments = task_conditions.moments(session.tasks, session.task_set)["cond/standard"]
    wanted = wordings.leaves(settings, session.task_set, session.tasks, moments)
    np.testing.assert_allclose(kept, wanted[wordings.WHITENING], rtol=1e-4, atol=1e-6)
    assert np.abs(kept - np.eye(len(kept))).max() > 0.1


def test_rows_that_describe_their_task_are_answered_with_its_sign(signed, tmp_path):
    texts = ("Say yes if it is good.", "Is it not good?")
    rows = [{"text": t, "description": d} for d in texts for t in TEXTS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in.jsonl").write_text(lines)
    files = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert cli.main(["predict", f"--workdir={signed}", *files]) == 0
    told = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = np.array([one["probs"]["yes"] for one in told]).reshape(2, -1)
    for i, text in enumerate(texts):
        folder = tmp_path / str(i)
        argv = ["adapt", f"--workdir={signed}", f"--description={text}"]
        assert cli.main([*argv, f"--output={folder}"]) == 0
        np.testing.assert_allclose(found[i], probabilities(folder, TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["flipped", "signed"])
def test_the_adapter_answers_as_the_run_does_with_its_description(
    name, request, tmp_path
):
    from hypelora_jax.evaluate import evaluation
    from hypelora_jax.evaluate.audit import auditing
    from hypelora_jax.evaluate.fitted import tokenised
    from hypelora_jax.exchange import described
    from hypelora_jax.train.session import load_corpus

    text = "Say yes unless it is good."
    source = str(request.getfixturevalue(name))
    described.adapt(source, str(tmp_path / "run"), text)
    fitted = evaluation.open_fitted(source)
    table = load_corpus(fitted.session.settings).splits["test"]
    vector = fitted.session.tasks.choices["condition"][1][1]
    both = {"condition": np.stack([vector, vector])}
    wanted = auditing.answered(fitted, tokenised(fitted, table), both)[:50, 1]
    found = probabilities(tmp_path / "run", table.text[:50])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tuning_begins_with_the_answers_of_the_description(signed, tmp_path, capsys):
    rows = "".join(json.dumps(row) + "\n" for row in rows_of("denies", 16))
    (tmp_path / "few.jsonl").write_text(rows)
    argv = ["adapt", f"--workdir={signed}", "--description=Is it not good?"]
    argv += [f"--examples={tmp_path / 'few.jsonl'}", f"--output={tmp_path / 'out'}"]
    assert cli.main(argv) == 0
    tuned = json.loads(capsys.readouterr().out)["tuned"]
    assert tuned["left_out"]["before"] == pytest.approx(
        tuned["loss"]["before"], abs=1e-5
    )


def rows_of(task, size, wrong=0):
    """Labelled rows of a task of the flip problem, the first ones labelled wrongly."""
    out = []
    for i in range(size):
        good = i % 2
        yes = good == (task == "asks")
        text = f"{flips.FILLERS[i % 5]} {('bad', 'good')[good]} {flips.FILLERS[i % 3]}"
        out.append({"text": text, "label": "yes" if yes == (i >= wrong) else "no"})
    return out


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def loaded(flipped):
    import hypelora_jax

    return hypelora_jax.load(str(flipped))


def yes(model, texts):
    return np.array([one["probs"]["yes"] for one in model.predict(texts)])


def test_the_adapter_in_memory_is_that_of_the_folder(loaded, flipped, tmp_path):
    text, folder = "Say yes unless it is good.", tmp_path / "folder"
    argv = ["adapt", f"--workdir={flipped}", f"--description={text}"]
    assert cli.main([*argv, f"--output={folder}"]) == 0
    made = loaded.adapter(text)
    np.testing.assert_allclose(
        yes(made, TEXTS), probabilities(folder, TEXTS), atol=1e-5
    )
    told = json.loads((folder / "config.json").read_text())["described"]
    assert (made.nearest, made.distance) == (told["nearest"], told["distance"])
    assert made.nearest == "denies" and made.labels == ("no", "yes")
    made.save(str(tmp_path / "saved"))
    again = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert again["described"] == told
    np.testing.assert_allclose(
        probabilities(tmp_path / "saved", TEXTS), yes(made, TEXTS), atol=1e-5
    )
    with pytest.raises(UserError, match="is not empty"):
        made.save(str(folder))


def test_sixteen_rows_of_the_opposite_task_flip_the_condition(
    flipped, tmp_path, capsys
):
    file = write_rows(tmp_path / "rows.jsonl", rows_of("denies", 16))
    text, folder = "Is it good?", tmp_path / "run"
    argv = ["adapt", f"--workdir={flipped}", f"--description={text}"]
    capsys.readouterr()
    assert cli.main([*argv, f"--examples={file}", f"--output={folder}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nearest"] == "denies"
    told = told["tuned"]
    assert told["what"] == "condition" and told["examples"] == 16
    assert 0 < told["steps"] <= 200
    for name in ("loss", "left_out"):
        assert told[name]["after"] < 0.3 < 1 < told[name]["before"]
    found = probabilities(folder, TEXTS)
    assert (found > 0.5).tolist() == [False, True, False, True]
    page = ("--formats=md", f"--output={tmp_path / 'report.html'}")
    assert cli.main(["report", f"--workdir={folder}", *page]) == 0
    for words in ("nearest training task", text, "condition, on 16 rows"):
        assert words in (tmp_path / "report.md").read_text()


@pytest.mark.soak
@pytest.mark.parametrize("wrong", [0, 1])
def test_eight_rows_do_not_spoil_an_adapter(loaded, tmp_path, wrong):
    file = write_rows(tmp_path / "rows.jsonl", rows_of("asks", 8, wrong))
    made = loaded.adapter("Is it good?", examples=str(file))
    assert (yes(made, TEXTS) > 0.5).tolist() == [True, False, True, False]


@pytest.mark.soak
def test_the_seed_decides_what_is_tuned(loaded, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", rows_of("denies", 24))  # some are drawn
    one, two = (loaded.adapter("Is it good?", examples=str(file)) for _ in range(2))
    assert one.tuned == two.tuned and one.tuned["steps"] > 0
    assert one.made.vector.tobytes() == two.made.vector.tobytes()


def test_a_tuned_temperature_lowers_the_loss_and_moves_no_answer(loaded, tmp_path):
    # that of the run is at its bound, because it answers all calibration rows right
    own = loaded.fitted._replace(calibrator=calibrators.Temperature(1.0))
    loaded = loaded._replace(fitted=own)
    file = write_rows(tmp_path / "rows.jsonl", rows_of("asks", 16, wrong=3))
    before = loaded.adapter("Is it good?")
    made = loaded.adapter("Is it good?", examples=str(file), tune="temperature")
    told = made.tuned
    assert told["loss"]["after"] < told["loss"]["before"]
    assert told["temperature"]["after"] > 1.5 * told["temperature"]["before"]
    p, q = yes(before, TEXTS), yes(made, TEXTS)
    assert ((p > 0.5) == (q > 0.5)).all() and (abs(q - 0.5) < abs(p - 0.5)).all()
    sure = write_rows(tmp_path / "sure.jsonl", rows_of("asks", 8))
    told = loaded.adapter("Is it good?", (), str(sure), "temperature").tuned
    old, new = told["temperature"].values()
    assert 0.3 * old < new < old  # eight right answers do not make it certain


BAD = {
    "few": (rows_of("asks", 7), "has 7 labelled rows; expected at least 8"),
    "other": (
        [*rows_of("asks", 8), {"text": "a", "label": "maybe"}],
        r"rows.jsonl:9: unknown label 'maybe'; expected a label of the task "
        r"\(no, yes\). Repair it$",
    ),
    "alike": (rows_of("asks", 16)[1::2], "all 8 rows of .* have the label yes"),
    "none": ([{"text": "a"}] * 8, "has no column label; it has text. Add it"),
    "pairs": (
        [{"text": "a", "text_b": "b", "label": "yes"}] * 8,
        "has two texts per example; expected one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_do_not_fit_are_refused(loaded, tmp_path, name):
    rows, words = BAD[name]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=words):
        loaded.adapter("Is it good?", examples=str(file))


def test_what_does_not_tune_is_refused(loaded, flipped, tmp_path, capsys):
    with pytest.raises(UserError, match="--tune is 'head'; expected one of condition"):
        loaded.adapter("A?", examples=str(tmp_path / "no.jsonl"), tune="head")
    with pytest.raises(UserError, match="no.jsonl does not exist"):
        loaded.adapter("A?", examples=str(tmp_path / "no.jsonl"))
    argv = ["adapt", f"--workdir={flipped}", "--description=A?", "--tune=condition"]
    assert cli.main([*argv, f"--output={tmp_path / 'out'}"]) == 2
    assert "expected --examples=FILE too" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_one_description_of_each_task_is_evaluated(flipped, loaded):
    from hypelora_jax.evaluate.fitted import corpus_of, tokenised, with_conditions

    before = (flipped / "eval" / "test" / "metrics.json").read_text()
    argv = ["evaluate", f"--workdir={flipped}", "--split=test", "--description=3"]
    assert cli.main(argv) == 0
    found = metrics(flipped, "test_description_3")
    assert found["split"] == "test_description_3"
    table = corpus_of(loaded.fitted).splits["test"]
    given = {"condition": npz.read(flipped / "conditions.npz")["descriptions"][[2, 5]]}
    data = with_conditions(tokenised(loaded.fitted, table), given)
    probs = calibrators.softmax(loaded.fitted.answer(data).logits.astype(np.float64))
    nll = -np.log(probs[np.arange(len(probs)), table.label]).mean()
    assert found["uncalibrated"]["nll"] == pytest.approx(nll, rel=1e-3)
    assert (flipped / "eval" / "test" / "metrics.json").read_text() == before
    for number in (4, -1):
        words = f"is {number}, but the task asks has 3 descriptions"
        with pytest.raises(UserError, match=words):
            tokenised(loaded.fitted, table, number)


def test_only_held_out_tasks_have_a_distance_next_to_their_metrics(loaded):
    from hypelora_jax.evaluate import calibration_split
    from hypelora_jax.evaluate.fitted import corpus_of, tokenised

    data = tokenised(loaded.fitted, corpus_of(loaded.fitted).splits["test"])
    session = loaded.fitted.session
    tasks = session.task_set._replace(held_out=(False, True))
    fitted = loaded.fitted._replace(session=session._replace(task_set=tasks))
    own = (data, np.zeros((len(data.ids), 2)))
    found = calibration_split.by_task(fitted, *own)["tasks"]
    assert "distance" not in found["asks"] and found["denies"]["nearest"] == "asks"
    x = session.tasks.choices["condition"][0].astype(np.float64)
    v = session.tasks.conditions["condition"][1]
    cosine = x @ v / np.linalg.norm(x, axis=1) / np.linalg.norm(v)
    assert found["denies"]["distance"] == pytest.approx(1 - cosine.max(), abs=1e-6)
    assert "distance" not in metrics(fitted.run.path)["tasks"]["denies"]


def test_calibrate_rewrites_the_metrics_of_each_task(flipped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(flipped, run)
    file = run / "eval" / "test" / "metrics.json"
    before = json.loads(file.read_text())
    before["tasks"]["denies"]["distance"] = 0.25  # as a held-out task has it
    file.write_text(json.dumps(before))
    assert cli.main(["calibrate", f"--workdir={run}", "--method=identity"]) == 0
    after = metrics(run)["tasks"]
    assert after["denies"].pop("distance") == 0.25
    assert cli.main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    again = metrics(run)["tasks"]
    for name in ("asks", "denies"):
        assert after[name]["nll"] > before["tasks"][name]["nll"] + 1e-4
        assert after[name] == pytest.approx(again[name], abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--description= "], "the description is empty"),
        ([f"--description={'x' * 10_001}"], "has 10,001 characters; expected at most"),
        (["--description=A?", "--labels=yes,maybe"], "answers no, yes; expected those"),
        (["--description=A?", "--labels=yes"], "are yes, but the head of this run"),
        (["--description=A?", "--labels=yes,yes"], "expected those, or a run with"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    flipped, tmp_path, capsys, flags, words
):
    argv = ["adapt", f"--workdir={flipped}", f"--output={tmp_path / 'out'}", *flags]
    capsys.readouterr()
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert words in line


def test_other_alphabets_make_an_adapter(flipped, tmp_path):
    argv = ["adapt", f"--workdir={flipped}", "--description=Хорошо ли это? 好吗？"]
    assert cli.main([*argv, f"--output={tmp_path / 'out'}"]) == 0
    assert np.isfinite(probabilities(tmp_path / "out", TEXTS)).all()


@pytest.mark.parametrize(
    "flags",
    [
        ["condition.source=task"],
        ["condition.source=set", "condition.sentences=4"],
        ["condition.source=text", "head.kind=label_text", "head.width=16"],
        pytest.param(["condition.source=task", "head.kind=per_task"], id="per_task"),
        ["condition.source=text", "condition.sign=1", "tasks.balanced=true"],
        pytest.param(["condition.source=text+noise"], marks=pytest.mark.soak),
        pytest.param(["condition.source=text+instance"], marks=pytest.mark.soak),
        pytest.param(
            ["condition.source=set", "condition.pooling=attention"],
            marks=pytest.mark.soak,
        ),
        pytest.param(
            ["condition.source=text", "hyper.outputs=core"], marks=pytest.mark.soak
        ),
    ],
    ids=str,
)
def test_every_source_and_head_trains_and_is_evaluated_again(flags, tmp_path):
    file = flips.write(tmp_path)
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.optim.num_epochs=1", *(f"--config.{flag}" for flag in flags)]
    run = tmp_path / "run"
    assert cli.main([*argv, f"--workdir={run}"]) == 0
    first = metrics(run)
    assert cli.main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    again = metrics(run)
    for name in ("nll", "accuracy", "ece"):
        assert again[name] == pytest.approx(first[name], abs=1e-6)
    assert again["tasks"].keys() == {"asks", "denies"}


def test_other_tasks_than_those_of_training_are_not_evaluated(tmp_path, capsys):
    file = flips.write(tmp_path)
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    run = tmp_path / "run"
    more = ["--config.optim.num_epochs=1", f"--workdir={run}"]
    assert cli.main([*argv, *more]) == 0
    tasks = json.loads((tmp_path / "set.json").read_text())
    (tmp_path / "set.json").write_text(json.dumps(tasks[::-1]))
    for command in ("evaluate", "audit"):
        assert cli.main([command, f"--workdir={run}"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "the tasks have changed since" in line


@pytest.mark.parametrize("command", ["train", "prepare"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.condition.source=task"], "the task denies is held out"),
        (["--config.head.kind=per_task"], "the task denies is held out"),
        (["--config.condition.sign=1"], "tasks that are each other's negation"),
        (["--config.loss.objective=reconstruction"], "task asks has no adapter"),
    ],
)
def test_a_set_that_cannot_be_learned_is_refused(
    command, flags, words, tmp_path, capsys
):
    file = flips.write(tmp_path)
    tasks = json.loads((tmp_path / "set.json").read_text())
    tasks[1]["role"] = "held_out"
    (tmp_path / "set.json").write_text(json.dumps(tasks))
    argv = [command, *flips.FLAGS, f"--config.tasks.file={file}", *flags]
    argv += [f"--workdir={tmp_path / 'run'}"] * (command == "train")
    assert cli.main(argv) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_margin_needs_conditions_of_tasks(tmp_path, capsys):
    argv = ["train", "--config=smoke", "--config.select_on=margin"]
    assert cli.main([*argv, f"--workdir={tmp_path / 'run'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "select_on=margin compares conditions of tasks" in line


def test_labels_are_named_with_a_description(tmp_path, capsys):
    import hypelora_jax
    from hypelora_jax.errors import UserError
    from hypelora_jax.exchange import described

    file, run = flips.write(tmp_path), str(tmp_path / "run")
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.head.kind=label_text", "--config.optim.num_epochs=1"]
    assert cli.main([*argv, f"--workdir={run}"]) == 0
    labels, path = ["bad", "fine", "very good"], tmp_path / "in.jsonl"
    asked = [{}, {"labels": labels}, {"labels": "bad, fine,very good"}]
    rows = [{"text": TEXTS[0], "description": "A?", **more} for more in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "a"}]))
    capsys.readouterr()
    assert cli.main(["predict", f"--workdir={run}", f"--input={path}"]) == 2
    said = capsys.readouterr()
    assert "input line 4: it does not say its task" in said.err.splitlines()[-1]
    own, other, again = (json.loads(line)["probs"] for line in said.out.splitlines())
    assert list(own) == ["no", "yes"] and again == other
    described.adapt(run, str(tmp_path / "other"), "A?", labels)
    (wanted,) = hypelora_jax.load(str(tmp_path / "other")).predict(TEXTS[:1])
    many = [f"label {i}" for i in range(20)]  # more than a slot of a bank has room for
    assert described.adapt(run, str(tmp_path / "many"), "A?", many)["labels"] == many
    assert list(other) == labels
    assert other == pytest.approx(wanted["probs"], abs=1e-5)
    model = hypelora_jax.load(run)
    with pytest.raises(UserError, match="hypelora adapt"):
        model.predict(TEXTS)
    for cells, words in (
        ({}, "it does not say its task; expected description, a text, or task"),
        ({"description": "A?", "labels": ["a"]}, "expected 2 to 16 different names"),
        ({"description": "A?", "labels": 3}, "the labels are 3; expected a list"),
        ({"description": "A?", "labels": labels[:1] * 2}, "expected 2 to 16 different"),
        ({"task": ["asks"]}, "there is no task ['asks']"),
        ({"description": "A?", "labels": labels}, ""),
        ({"task": "asks"}, ""),
    ):
        fault = model.tasks.fault(cells)
        assert words in fault if words else not fault


def test_labels_must_be_named_if_those_of_the_tasks_differ(tmp_path, capsys):
    import hypelora_jax
    from hypelora_jax.exchange import described

    file, run = flips.write(tmp_path), str(tmp_path / "run")
    tasks = json.loads((tmp_path / "set.json").read_text())
    tasks[1]["labels"] = {"calm": 0, "angry": 1}
    (tmp_path / "set.json").write_text(json.dumps(tasks))
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.head.kind=label_text", "--config.optim.num_epochs=1"]
    assert cli.main([*argv, f"--workdir={run}"]) == 0
    told = "task asks has no, yes, and task denies has calm, angry"
    assert told in capsys.readouterr().err
    wanted = "it has no labels, and the tasks of this run have different ones"
    with pytest.raises(UserError, match=wanted):
        described.adapt(run, str(tmp_path / "out"), "Is it sarcastic?")
    asked = hypelora_jax.load(run).tasks
    assert wanted in asked.fault({"description": "Is it sarcastic?"})
    assert not asked.fault({"description": "Is it?", "labels": ["no", "yes"]})
    assert not asked.fault({"task": "denies"})


def test_the_static_run_keeps_the_encoder_of_labels_and_starts_anew(
    flipped, monkeypatch
):
    import dataclasses

    from hypelora_jax.commands import audit, train
    from hypelora_jax.run import records

    own = records.settings_of(records.open_record(str(flipped))[1])
    condition = dataclasses.replace(own.condition, encoder="minilm")
    ckpt = dataclasses.replace(own.ckpt, start="/some/run")
    head = dataclasses.replace(own.head, kind="label_text")
    own = dataclasses.replace(own, condition=condition, ckpt=ckpt, head=head)
    begun = []
    monkeypatch.setattr(records, "settings_of", lambda record: own)
    monkeypatch.setattr(train, "train", lambda settings, out: begun.append(settings))
    audit.train_without_condition(str(flipped), "out")
    (static,) = begun
    assert static.method == "lora" and static.condition.source == "none"
    assert static.condition.encoder == "minilm" and static.ckpt.start == ""


@pytest.mark.soak
@pytest.mark.parametrize(
    "flags",
    [
        ["condition.source=text"],
        ["condition.source=task"],
        ["condition.source=set", "condition.sentences=4"],
        ["condition.source=text+task"],
        ["condition.source=text", "head.kind=label_text", "head.width=16"],
        ["condition.source=task", "head.kind=per_task"],
        [
            "method=lora",
            "condition.source=none",
            "condition.standardise=false",
            "head.kind=label_text",
        ],
        ["hyper.outputs=core", "lora.targets=q,v,up"],
    ],
    ids=str,
)
def test_a_named_task_is_answered_as_in_evaluation(flags, tmp_path):
    import hypelora_jax
    from hypelora_jax.evaluate import evaluation
    from hypelora_jax.inference.asked_tasks import AskedTask
    from hypelora_jax.inference.task_adapters import TaskAdapters
    from hypelora_jax.train.session import load_corpus

    file, run = flips.write(tmp_path), tmp_path / "run"
    argv = ["train", *flips.FLAGS, f"--config.tasks.file={file}"]
    argv += ["--config.optim.num_epochs=1", *(f"--config.{flag}" for flag in flags)]
    assert cli.main([*argv, f"--workdir={run}"]) == 0
    model = hypelora_jax.load(str(run))
    table = load_corpus(model.settings).splits["test"]
    logits_NY = read(Run.open(run).predictions_file("test")).logits
    calibrator = evaluation.open_fitted(str(run)).calibrator
    wanted = calibrators.apply(calibrator, logits_NY.astype(np.float64))
    asked = [AskedTask(task=("asks", "denies")[k]) for k in table.task]
    texts = [(text,) for text in table.text]
    found = TaskAdapters(model, 1).answer(texts, asked).fields
    probs = [list(one["probs"].values()) for one in found]
    np.testing.assert_allclose(probs, wanted, atol=1e-5)
    assert {one["nearest"] for one in found} == {"asks", "denies"}
