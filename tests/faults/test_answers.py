"""Kinds E, L and M: answers that are no numbers, names in figures, and HTTP."""

import ast
import concurrent.futures
import gzip
import http.client
import io
import json
import math
import socket

import jax
import matplotlib
import numpy as np
import pytest
import serving
import source_tree
import step_zero
from matplotlib.text import Text
from rich.console import Console
from run_folders import make_run

import hypelora_jax
from hypelora_jax import cli, files
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.inference import predictor, stream
from hypelora_jax.report import curves, figures, html, metric_tables, reliability
from hypelora_jax.report.series import load
from hypelora_jax.run.metric_log import MetricLog
from hypelora_jax.run.paths import Run
from hypelora_jax.serve import adapter_pool, server
from hypelora_jax.train import ensembles, scoring
from hypelora_jax.train.divergence import NotFinite, check_outputs

__all__ = ["make_run"]
BAD = "zzz"  # a model that is broken has no finite answer to texts with this word
TEXTS = ["one", "two", f"{BAD} three", "four", "five"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return step_zero.run_folder(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(run):
    return predictor.load(str(run), batch_sizes=(8,))


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run folder whose every weight of its own is NaN."""
    made = step_zero.session(step_zero.settings())
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), made.trainable)
    made = made._replace(trainable=nothing)
    return step_zero.save(tmp_path_factory.mktemp("diverged") / "run", made)


@pytest.fixture
def broken(model, monkeypatch):
    """The forward pass gives NaN or infinity for texts that begin with BAD."""
    (marked,) = predictor.tokenise(model, [(BAD,)]).ids
    begins, whole = marked[:-1].tolist(), ensembles.split_logits

    def split_logits(settings, run, trainable, frozen, alpha, data, *rest):
        out = np.array(whole(settings, run, trainable, frozen, alpha, data, *rest))
        for row, ids in enumerate(data.encoded.ids):
            if ids[: len(begins)].tolist() == begins:
                out[:, row] = np.nan if row % 2 else np.inf
        return out

    monkeypatch.setattr(ensembles, "split_logits", split_logits)
    of_batches = scoring.logits

    def logits(run, trainable, frozen, alpha, batches, n):
        """In packed rows the NaN of a text reaches the other texts of its row."""
        batches = list(batches)
        out = np.array(of_batches(run, trainable, frozen, alpha, batches, n))
        for batch in batches:
            for row, index in enumerate(batch["index"] if "first" in batch else ()):
                ids, firsts = batch["ids"][row].tolist(), batch["first"][row]
                if any(ids[i : i + len(begins)] == begins for i in firsts):
                    out[index[index >= 0]] = np.nan
        return out

    monkeypatch.setattr(scoring, "logits", logits)


def lines_of(tmp_path, texts):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"--input={path}"


def strict(text):
    """The value of a JSON text, in which NaN and Infinity are errors."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def predict(run, *flags):
    return cli.main(["predict", f"--workdir={run}", *flags])


# Kind E: what is not finite


def test_f10_predict_names_the_line_and_answers_those_before_it(
    run, broken, tmp_path, capsys
):
    assert predict(run, lines_of(tmp_path, TEXTS)) == 2
    out, err = capsys.readouterr()
    answered = [strict(line) for line in out.splitlines()]
    assert [one["text"] for one in answered] == TEXTS[:2]
    assert all(math.isfinite(one["confidence"]) for one in answered)
    last = err.strip().splitlines()[-1]
    assert "input line 3: the model's outputs for it are NaN or infinite" in last
    target = tmp_path / "answers.csv"
    assert predict(run, lines_of(tmp_path, TEXTS), f"--output={target}") == 2
    assert not target.exists()
    assert len((tmp_path / "answers.csv.part").read_text().splitlines()) == 3


def test_f10_skip_leaves_such_lines_out_and_says_so(run, broken, tmp_path, capsys):
    texts = [*TEXTS, f"{BAD} six"]
    assert predict(run, lines_of(tmp_path, texts), "--on-error=skip") == 0
    out, err = capsys.readouterr()
    assert [strict(line)["text"] for line in out.splitlines()] == [
        *TEXTS[:2],
        *TEXTS[3:],
    ]
    assert "skipped input line 3" in err and "skipped input line 6" in err
    assert "skipped 2 of 6 lines" in err


@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_f10_a_model_without_any_finite_answer_does_not_exit_with_0(
    diverged, skip, tmp_path, capsys
):
    flags = lines_of(tmp_path, TEXTS[:2]), f"--on-error={skip}"
    assert predict(diverged, *flags, f"--output={tmp_path / 'out.jsonl'}") == 2
    out, err = capsys.readouterr()
    assert out == "" and "NaN or infinite" in err.strip().splitlines()[-1]
    assert not (tmp_path / "out.jsonl").exists()


def test_f10_python_raises_and_names_the_text(model, broken, monkeypatch):
    monkeypatch.setattr(predictor, "WINDOW", 2)
    with pytest.raises(NotFinite, match=r"outputs for example texts\[4\] are NaN"):
        model.predict(["a", "b", "c", "d", f"{BAD} e"])
    assert len(model.predict(["a", "b", "c", "d"])) == 4


def test_f10_a_calibrator_does_not_make_a_number_of_nan(diverged):
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    histogram = calibrators.build("histogram").fit(logits, np.array([1, 0, 0, 1]))
    assert np.isfinite(calibrators.apply(histogram, np.full((1, 2), np.nan))).all()
    broken = predictor.load(str(diverged))
    own = broken._replace(fitted=broken.fitted._replace(calibrator=histogram))
    with pytest.raises(NotFinite):
        own.predict(["a"])


def test_f10_a_calibrator_does_not_make_nan_of_numbers(model):
    tiny = calibrators.Temperature(5e-324)  # above 0, as calibrator.json must say
    own = model._replace(fitted=model.fitted._replace(calibrator=tiny))
    with pytest.raises(NotFinite), np.errstate(all="ignore"):
        own.predict(["a b"])


def test_a_calibrator_in_python_refuses_logits_that_are_not_finite():
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    fitted = hypelora_jax.calibrate(logits, [1, 0, 0, 1], "histogram")
    for bad in (np.nan, np.inf, -np.inf):
        logits[2, 1] = bad
        with pytest.raises(UserError, match=r"logits\[2\] .*; expected finite numbers"):
            fitted(logits)


def test_f10_no_file_of_a_run_gets_such_an_answer(model, diverged):
    fitted = evaluation.open_fitted(str(diverged))
    ids, types = [np.array([1, 2])] * 3, [np.zeros(2, np.int32)] * 3
    data = predictor.token_dataset(model, ids, types)
    with pytest.raises(NotFinite, match="example 0 are NaN or infinite"):
        evaluation.write_split(fitted, "validation", data, fitted.answer(data))
    assert not fitted.run.predicted_splits() and not fitted.run.evaluated_splits()


def test_outputs_are_checked_by_row_and_by_member():
    out = np.zeros((2, 4, 3), np.float32)
    check_outputs(out)
    out[1, 2, 0], out[0, 3, 1] = -np.inf, np.nan
    with pytest.raises(NotFinite, match="example c are") as found:
        check_outputs(out, list("abcd"))
    assert found.value.rows.tolist() == [2, 3]


# Kind E: JSON


def json_writers(tree):
    """Calls of json.dump and json.dumps, as source text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
            "json.dump"
        ):
            yield ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            yield from (one.name for one in node.names if one.name.startswith("dump"))


def test_one_function_writes_all_json():
    """Two others: calibrators see arrays only, and messages show fields as JSON."""
    found = {m: [*json_writers(tree)] for m, tree in source_tree.sources().items()}
    found = {m.removeprefix("hypelora_jax."): c for m, c in found.items() if c}
    assert [*found] == ["calibration.calibrators", "config.json_fields", "files"]
    del found["config.json_fields"]
    for calls in found.values():
        assert len(calls) == 1 and "allow_nan=False" in calls[0]
    for text in ("import json\njson.dumps(1)", "from json import dump"):
        assert [*json_writers(ast.parse(text))]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "the value is nan"),
        ({"metrics": {"nll": [1.0, math.inf]}}, r"metrics.nll\[1\] is inf"),
        ([{"a": np.float64(-np.inf)}], r"\[0\].a is -inf"),
        ({"a": (0, math.nan)}, r"a\[1\] is nan"),
    ],
)
def test_json_that_is_none_is_refused_by_place(value, said, tmp_path):
    with pytest.raises(UserError, match=f"{said}; expected a finite number"):
        files.to_json(value)
    with pytest.raises(UserError, match=f"x.json cannot be written: {said}"):
        files.write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


def test_json_nested_too_deeply_is_refused():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UserError, match="nested too deeply"):
        files.to_json(value)


def test_a_metric_that_is_not_finite_is_named_and_not_logged(tmp_path):
    place = Run.create(tmp_path / "run")
    row = {"step": 3, "epoch": 1, "split": "validation", "mse": 2.0}
    with MetricLog(place, 0, 9, show=False) as log:
        log.write(row)
        with pytest.raises(UserError, match="validation at step 3: mse is inf; expect"):
            log.write(row | {"mse": math.inf})
    assert [strict(line) for line in place.metric_log.read_text().splitlines()] == [row]


@pytest.mark.parametrize("cell", ["NaN", "-Infinity", "1e999", '{"a": [NaN]}'])
def test_a_cell_that_json_cannot_spell_is_null(model, cell, tmp_path):
    lines = ['{"text": "a", "n": 1}', f'{{"text": "b", "n": {cell}}}', '{"text": "c"}']
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    rows = stream.Stream(str(source), str(target))
    stream.predict(model, rows)
    found = [strict(line) for line in target.read_text().splitlines()]
    assert [one["text"] for one in found] == ["a", "b", "c"]
    assert found[1]["n"] in (None, {"a": [None]})


# Kind L: names in figures

NAMES = (
    "p$^$",
    "lr$1$2",
    "$\\frac{1}{$",
    "_base",
    "a_b^c{d}\\e",
    "\\$5",
    "two\nlines",
    "tab\there",
    "[red]bold[/blue]",
    "not \udcff utf-8",
    "long_" + "n" * 250,
    "W" * 150,
)


def texts_of(figure):
    return [text for text in figure.findobj(Text) if text.get_text()]


def shown(text):
    """What a name looks like, without line breaks."""
    return text.replace(figures.NOTHING_WIDE, "").replace("\n", "")


def test_f27_names_are_shown_as_they_are(make_run):
    run = load(make_run("run", n=100))
    methods = [run._replace(name=name) for name in NAMES]
    plain = [shown(figures.named(name)) for name in NAMES]
    assert plain[:7] == [name.replace("\n", "") for name in NAMES[:7]]
    assert plain[8:] == [NAMES[8], "not \\udcff utf-8", *NAMES[10:]]
    assert plain[7] == "tab\\there"
    risk = curves.risk_coverage(methods, "validation")
    (axes,) = risk.axes
    assert [shown(one.get_text()) for one in axes.get_legend().get_texts()] == plain
    panels = [reliability.panel_of(one, "validation") for one in methods]
    for figure in (curves.training(methods), reliability.diagram(panels)):
        titles = [shown(axes.get_title()) for axes in figure.axes if axes.get_title()]
        assert titles == plain
        assert not any(t.get_parse_math() or t.get_usetex() for t in texts_of(figure))
    assert not any(t.get_parse_math() or t.get_usetex() for t in texts_of(risk))
    figures.png(risk)
    for hard in (NAMES[2], NAMES[-1]):
        figures.png(curves.training([run._replace(name=hard)]))


def test_f27_no_figure_uses_a_name_without_the_function(make_run, monkeypatch):
    methods = [load(make_run(f"{i}"))._replace(name=f"$NAME{i}$") for i in range(2)]
    monkeypatch.setattr(figures, "named", lambda name, more="": "prepared")
    panels = [reliability.panel_of(method, "validation") for method in methods]
    for figure in (
        curves.training(methods),
        curves.risk_coverage(methods, "validation"),
        reliability.diagram(panels),
    ):
        found = [text.get_text() for text in texts_of(figure)]
        assert found.count("prepared") == 2
        assert not any("NAME" in text for text in found)


def test_f27_a_very_long_name_is_bounded_and_keeps_both_ends():
    text = figures.named("begin" + "x" * 5000 + "end", ", 3 seeds")
    lines = text.split("\n")
    assert len(lines) <= figures.LINES and max(map(len, lines)) <= figures.LINE
    assert text.startswith("begin") and text.endswith("end, 3 seeds")
    assert shown(figures.named("n" * 255, ", 99 seeds")) == "n" * 255 + ", 99 seeds"


def test_f27_reports_and_tables_of_such_runs(make_run, tmp_path):
    names = ("p$^$", "[red]bold[/blue]", "not \udcff utf-8")
    run = load(make_run("run", n=100))
    methods = [run._replace(name=name, seeds=run.seeds) for name in names]
    html.write_report(methods, tmp_path / "x.html", replicas=0)
    page = (tmp_path / "x.html").read_text()
    assert "p$^$" in page and "[red]bold[/blue]" in page
    table = metric_tables.Table("[red]a[/x]", ("", "[bold]b"), (("c", "[/d]"),))
    buffer = io.StringIO()
    Console(file=buffer).print(metric_tables.to_rich(table))
    assert all(s in buffer.getvalue() for s in ("[red]a[/x]", "[bold]b", "[/d]"))


def test_f27_training_ends_with_a_report_whatever_the_name(tmp_path, monkeypatch):
    """Even where a user's matplotlibrc sets all text in LaTeX."""
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    flags = [
        *("--config=smoke:method=lora", "--config.data.num_examples=48"),
        *("--config.data.max_length=16", "--config.optim.num_epochs=1"),
        *("--config.optim.batch_size=16", f"--workdir={tmp_path / 'p$^$'}"),
    ]
    assert cli.main(["train", *flags]) == 0
    made = Run.open(tmp_path / "p$^$")
    assert made.summary_file.exists() and made.diagram_file("validation").exists()
    assert "p$^$" in made.report_file.read_text()


# Kind M: HTTP

GET_PATHS = ("/", "/adapters", "/healthz", "/metrics", "/docs", "/openapi.json")


@pytest.fixture(scope="module")
def port(run):
    pool = adapter_pool.open_pool([str(run)], batch_sizes=(8,))
    with serving.running(pool, server.Batching(8, window=0.05)) as port:
        yield port


def raw(port, text):
    """(status, headers, body) of a request as it is written here."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as place:
        place.sendall(text.encode())
        answer = http.client.HTTPResponse(place, method=text.split()[0])
        answer.begin()
        return answer.status, answer.headers, answer.read().decode()


def test_f10_serve_answers_500_in_json_and_others_as_ever(port, broken):
    questions = [{"text": text} for text in TEXTS]
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda q: serving.ask(port, q), questions))
    assert [status for status, _ in found] == [200, 200, 500, 200, 200]
    assert "NaN or infinite" in found[2][1]["error"]
    status, headers, text = serving.call(
        port, "POST", "/predict", json.dumps(questions)
    )
    assert status == 500 and headers["content-type"] == "application/json"
    assert list(strict(text)) == ["error"]
    assert serving.ask(port, {"text": "one"})[0] == 200


def test_f10_a_diverged_run_is_served_with_500(diverged):
    pool = adapter_pool.open_pool([str(diverged)], batch_sizes=(8,))
    with serving.running(pool, server.Batching(8)) as port:
        status, got = serving.ask(port, {"text": "a"})
    assert status == 500 and "NaN or infinite" in got["error"]


@pytest.mark.parametrize("path", GET_PATHS)
def test_f29_head_is_get_without_a_body(port, path):
    want = serving.call(port, "GET", path)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(2):  # the connection goes on, so there was no body in between
        connection.request("HEAD", path)
        got = connection.getresponse()
        assert (got.status, got.read()) == (want[0], b"") and got.status == 200
        assert got.headers["content-type"] == want[1]["content-type"]
        assert abs(int(got.headers["content-length"]) - len(want[2].encode())) < 400
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("GET", "/predict", "POST"),
        ("HEAD", "/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
    ],
)
def test_f29_405_names_the_methods(port, method, path, allowed):
    status, headers, _ = serving.call(port, method, path)
    assert (status, headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x-gzip", "gzip, gzip"])
def test_compressed_bodies_are_415(port, coding):
    bomb = gzip.compress(b" " * 10_000_000)
    headers = serving.JSON | {"content-encoding": coding}
    status, _, text = serving.call(port, "POST", "/predict", bomb, headers)
    assert status == 415 and "content-encoding is" in strict(text)["error"]
    headers = serving.JSON | {"content-encoding": "identity"}
    body = json.dumps({"text": "a"})
    assert serving.call(port, "POST", "/predict", body, headers)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ('{"text": "a", "text": "b"}', 422, "the key 'text' twice"),
        (
            '[{"text": "a"}, {"text": "b", "text_b": 1, "text_b": 2}]',
            422,
            "'text_b'",
        ),
        ('{"text": "a", "x": {"\\ud800": 1, "\\ud800": 2}}', 422, "twice"),
        ("[" * 100_000 + "]" * 100_000, 400, "nested too deeply"),
        ('{"text":' * 100_000 + "1" + "}" * 100_000, 400, "nested too deeply"),
        ('{"text": "a", "condition": ' + "[" * 300 + "]" * 300 + "}", 422, "condition"),
    ],
)
def test_bodies_that_json_readers_differ_about_are_refused(port, body, status, said):
    got, headers, text = serving.call(port, "POST", "/predict", body)
    assert (got, headers["content-type"]) == (status, "application/json")
    error = strict(text)["error"]
    assert said in error and "\n" not in error and len(error) < 300


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /healthz HTTP/1.0", 200),
        ("GET /healthz HTTP/1.0\r\nhost: elsewhere.example", 400),
        ("GET http://localhost:8000/healthz HTTP/1.1\r\nhost: x", 200),
        ("GET HTTP://127.0.0.1 HTTP/1.1\r\nhost: x", 200),
        ("GET http://elsewhere.example/ HTTP/1.1\r\nhost: localhost", 400),
        ("GET /healthz HTTP/1.1\r\nhost:", 400),
        ("GET /healthz HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1\r\nhost: localhost", 404),
        ("HEAD http://localhost/predict HTTP/1.0", 405),
    ],
)
def test_forms_of_a_request_target(port, head, status):
    assert raw(port, f"{head}\r\nconnection: close\r\n\r\n")[0] == status


@pytest.mark.parametrize("host", ["", " ", "..", "no such host", "ü" * 70])
def test_a_host_that_is_none_is_refused(host):
    with pytest.raises(UserError, match="expected an address"):
        server.bound(host, 0).close()
