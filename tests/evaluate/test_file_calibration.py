"""Calibrators of files of predictions, by the real command: no run, no model."""

import csv
import json

import numpy as np
import pytest

from hypelora_jax import cli
from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import file_calibration, file_metrics
from hypelora_jax.run import prediction_files

N, CLASSES = 60, ("bad", "fair", "good")


def rows(seed, n=N, sure=3.0):
    """Logits that are too sure by a factor, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 1.5
    cumulative = np.cumsum(calibrators.softmax(logits), axis=1)
    labels = (rng.random((n, 1)) > cumulative).sum(axis=1).clip(max=2)
    return logits * sure, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files to fit on and to apply to, in every format that is read."""
    path = tmp_path_factory.mktemp("files")
    for name, seed in (("fit", 0), ("new", 1)):
        logits, labels = rows(seed)
        if name == "new":
            labels[:4] = -1
        probs = calibrators.softmax(logits)
        ids = np.array([f"{name}{i}" for i in range(N)])
        np.savez(path / f"{name}.npz", logits=logits, labels=labels, ids=ids)
        with (path / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "prob_0", "label", "prob_1", "prob_2", "text"])
            for i, (p, y) in enumerate(zip(probs, labels, strict=True)):
                table.writerow([ids[i], p[0], y, p[1], p[2], f'a "b", {i}\nc'])
        with (path / f"{name}.jsonl").open("w") as file:
            for i, (p, y) in enumerate(zip(probs, labels, strict=True)):
                row = {"id": i, "label": int(y), "probs": p.tolist(), "x": [i, None]}
                file.write(json.dumps(row) + "\n")
        with (path / f"{name}_predicted.jsonl").open("w") as file:
            for i, (p, y) in enumerate(zip(probs, labels, strict=True)):
                true = CLASSES[y] if y >= 0 else None
                row = {"text": f"text {i}", "input_label": true}
                row |= {"label": CLASSES[p.argmax()], "confidence": p.max()}
                row |= {"probs": dict(zip(CLASSES, p, strict=True)), "set": ["bad"]}
                file.write(json.dumps(row) + "\n")
    return path


def calibrate(*flags):
    return cli.main(["calibrate", *map(str, flags)])


def applied(folder, tmp_path, read, write, capsys, method="vector"):
    """What the command prints, and the file it writes."""
    out = tmp_path / f"out{write}"
    flags = [f"--predictions={folder}/fit{read}", f"--apply={folder}/new{read}"]
    assert calibrate(*flags, f"--output={out}", f"--method={method}") == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1]), out


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (".npz", ".npz"),
        (".npz", ".csv"),
        (".csv", ".jsonl"),
        (".jsonl", ".npz"),
        ("_predicted.jsonl", ".csv"),
    ],
)
def test_every_format_is_applied_to_and_judged_as_it_says(
    read, write, folder, tmp_path, capsys
):
    said, out = applied(folder, tmp_path, read, write, capsys)
    (fit, known), (new, labels) = rows(0), rows(1)
    if read != ".npz":  # those files have probabilities, so their logs are scaled
        fit, new = (np.log(calibrators.softmax(x)) for x in (fit, new))
    state = calibrators.build("vector").fit(fit, known)
    got = prediction_files.contents(out)
    np.testing.assert_array_equal(got.probs, calibrators.apply(state, new))
    assert list(got.labels) == [-1] * 4 + list(labels[4:])
    assert said["judged"] == "applied" and said["was"] == "none"
    assert said["after"]["n"] == N - 4
    judged = file_metrics.metrics_of_file(out)
    for name, value in judged.items():
        mine = said["after"][name]
        assert (mine["value"] if isinstance(mine, dict) else mine) == value, name
    assert said["state"] == json.loads(calibrators.to_json(state))
    assert said["after"]["nll"]["value"] < said["before"]["nll"]["value"]


def test_the_rest_of_a_row_is_kept(folder, tmp_path, capsys):
    _, out = applied(folder, tmp_path, ".csv", ".csv", capsys)
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[7]["text"] == 'a "b", 7\nc' and table[7]["id"] == "new7"
    _, out = applied(folder, tmp_path, ".jsonl", ".jsonl", capsys)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[7]["x"] == [7, None] and lines[7]["id"] == 7
    _, out = applied(folder, tmp_path, ".jsonl", ".csv", capsys)
    with out.open(newline="") as file:
        assert list(csv.DictReader(file))[7]["x"] == "[7, null]"
    _, out = applied(folder, tmp_path, ".npz", ".jsonl", capsys)
    assert json.loads(out.read_text().splitlines()[7])["id"] == "new7"
    _, out = applied(folder, tmp_path, ".csv", ".npz", capsys)
    held = np.load(out)
    assert held["ids"][7] == "new7" and held["text"][7] == 'a "b", 7\nc'


@pytest.mark.parametrize("write", [".csv", ".jsonl"])
def test_rows_of_predict_stay_rows_of_predict(write, folder, tmp_path, caplog):
    out = tmp_path / f"out{write}"
    own = (str(folder / f"{name}_predicted.jsonl") for name in ("fit", "new"))
    file_calibration.calibrate(next(own), "vector", next(own), str(out))
    if write == ".csv":
        with out.open(newline="") as file:
            table = list(csv.DictReader(file))
        probs = np.array([[float(r[f"prob_{c}"]) for c in CLASSES] for r in table])
        empty = ""
    else:
        table = [json.loads(line) for line in out.read_text().splitlines()]
        probs = np.array([[r["probs"][c] for c in CLASSES] for r in table])
        empty = None
    _, labels = rows(1)
    true = [empty] * 4 + [CLASSES[y] for y in labels[4:]]
    assert [r["input_label"] for r in table] == true
    assert [r["label"] for r in table] == [CLASSES[p.argmax()] for p in probs]
    assert [float(r["confidence"]) for r in table] == list(probs.max(axis=1))
    assert table[7]["text"] == "text 7"
    assert "set" not in table[7] and "is written without set" in caplog.text


@pytest.mark.parametrize("write", [".csv", ".jsonl"])
def test_predictions_without_labels_are_applied_to(write, folder, tmp_path):
    lines = (folder / "new_predicted.jsonl").read_text().splitlines()
    rows_of = [json.loads(line) for line in lines]
    for row in rows_of:
        del row["input_label"]
    new, out = tmp_path / "new.jsonl", tmp_path / f"out{write}"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    fit = str(folder / "fit_predicted.jsonl")
    got = file_calibration.calibrate(fit, "vector", str(new), str(out))
    assert got["judged"] == "cross-fitted"
    held = prediction_files.contents(out)
    assert (held.labels == -1).all() and held.classes == CLASSES
    with pytest.raises(UserError, match="its label is a prediction; expected the true"):
        prediction_files.read(out)
    with pytest.raises(UserError, match="its label is a prediction; expected the true"):
        file_calibration.calibrate(str(out))


def test_own_rows_are_judged_by_fits_on_the_others(folder, capsys):
    assert calibrate(f"--predictions={folder}/fit.npz", "--method=isotonic") == 0
    out = capsys.readouterr().out
    said = json.loads(out.splitlines()[-1])
    logits, labels = rows(0)
    state = calibrators.build("isotonic").fit(logits, labels)
    crossed = calibrators.cross_fitted(state, logits, labels)
    wanted = metrics.compute_all(crossed, labels)
    optimistic = metrics.compute_all(calibrators.apply(state, logits), labels)
    assert said["judged"] == "cross-fitted" and "cross-fitted" in out
    assert said["after"]["brier"]["value"] == wanted["brier"]
    assert optimistic["brier"] < wanted["brier"], "in-sample numbers look better"
    before = metrics.compute_all(calibrators.softmax(logits), labels)
    assert said["before"]["nll"]["value"] == before["nll"]
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_rows_that_were_fitted_on_are_not_taken_for_new_ones(folder, tmp_path, caplog):
    own = str(folder / "fit.npz")
    alone = file_calibration.calibrate(own, "vector")
    both = file_calibration.calibrate(own, "vector", own, str(tmp_path / "out.npz"))
    assert both == alone
    assert "applied to the rows that it was fitted on" in caplog.text
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, logits=rows(1)[0], labels=np.full(N, -1))
    again = file_calibration.calibrate(
        own, "vector", str(unlabelled), str(tmp_path / "out.csv")
    )
    assert again == alone


def test_unlabelled_rows_are_not_fitted_on(folder, tmp_path, caplog):
    logits, labels = rows(0)
    more = np.concatenate([logits, -logits])
    path = tmp_path / "more.npz"
    np.savez(path, logits=more, labels=np.concatenate([labels, np.full(N, -1)]))
    got = file_calibration.calibrate(str(path))
    assert got == file_calibration.calibrate(str(folder / "fit.npz"))
    assert f"{N} rows without a label are left out" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "got neither of --workdir and --predictions; expected one"),
        (["--predictions=F", "--workdir=DIR"], "got both of --workdir and"),
        (["--workdir=DIR", "--apply=F"], "--apply=F is for files, and --workdir names"),
        (["--workdir=DIR", "--output=O"], "--output=O is for files"),
        (["--predictions=F", "--apply=F"], "--apply is given without --output"),
        (["--predictions=F", "--output=O"], "--output is given without --apply"),
        (["--predictions=FIT", "--apply=F", "--output=FIT"], "that this command reads"),
        (
            ["--predictions=F", "--apply=G", "--output=o.txt"],
            "ends in '.txt'; expected",
        ),
        (["--predictions=absent.npz"], "absent.npz is not a file"),
        (["--predictions=FIT", "--method=platt"], "invalid choice: 'platt'"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, message, folder, capsys):
    given = [flag.replace("FIT", f"{folder}/fit.npz") for flag in flags]
    assert calibrate(*given) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_files_that_do_not_fit_are_one_line(folder, tmp_path, capsys):
    def refused(message, *flags):
        assert calibrate(*flags) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    logits, labels = rows(0, 19)
    few, out = tmp_path / "few.npz", f"--output={tmp_path}/out.npz"
    np.savez(few, logits=logits, labels=labels)
    refused("has 19 labelled rows; expected at least 20", f"--predictions={few}")
    np.savez(few, logits=logits, labels=np.full(19, -1))
    refused("no row with a label (19 rows in all)", f"--predictions={few}")
    two = tmp_path / "two.npz"
    np.savez(two, logits=logits[:, :2], labels=labels % 2)
    fit = f"--predictions={folder}/fit.npz"
    refused("two.npz has 2 classes and", fit, f"--apply={two}", out)
    lines = (folder / "new_predicted.jsonl").read_text()
    other = tmp_path / "other.jsonl"
    other.write_text(lines.replace('"bad"', '"worst"'))
    fit = f"--predictions={folder}/fit_predicted.jsonl"
    refused("has the classes worst, fair, good and", fit, f"--apply={other}", out)
    assert not (tmp_path / "out.npz").exists()
