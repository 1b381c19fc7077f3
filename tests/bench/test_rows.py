"""What the benchmark writes: JSON of a fixed shape, its table, and its page."""

import json
import re

import documented
import pytest

from benchmarks import __main__ as command
from benchmarks import case, page, plots, rows, timing
from benchmarks.cases import CASES
from hypelora_jax.errors import UserError

TIMES = timing.Compared(
    timing.Times([1.0, 1.0, 2.0], [2.0, 2.0, 4.0]),
    timing.Times([1.5, 1.6, 2.8], [3.0, 3.2, 5.6]),
    "sdpa",
    {"eager": 9.0, "sdpa": 1.5},
)
ROW = rows.of_times("step/x", "torch+peft", TIMES, seconds_to_compile=3.25)


@pytest.fixture
def measured(monkeypatch, capsys):
    """A function that runs the command with one case; returns (code, out, err)."""

    def run(found, *argv):
        def yields(options):
            for one in found if isinstance(found, list) else [found]:
                if isinstance(one, Exception):
                    raise one
                yield one

        cases = {"step/x": case.Case(yields), "padding/x": case.Case(yields, "glue")}
        monkeypatch.setattr(command, "CASES", cases)
        return command.main(argv), *capsys.readouterr()

    return run


def test_the_json_has_the_fields_that_programs_read(measured, tmp_path):
    path = tmp_path / "rows.json"
    code, out, err = measured(ROW, "--only=step", f"--json={path}")
    told = json.loads(path.read_text())
    assert code == 0
    assert set(told) == {"machine", "versions", "command", "date", "rows", "details"}
    assert told["rows"] == [
        {
            "name": "step/x",
            "rival": "torch+peft",
            "ratio": 1.5,
            "low": 1.4,
            "high": 1.6,
            "ours": 1.0,
            "theirs": 1.6,
            "unit": "s",
        }
    ]
    (notes,) = told["details"]
    assert notes["seconds_in_trial"] == {"eager": 9.0, "sdpa": 1.5}
    assert (notes["fastest"], notes["rounds"], notes["cpu_ratio"]) == ("sdpa", 3, 1.5)
    assert notes["seconds_to_compile"] == 3.25
    assert told["machine"]["cores"] >= 1 and "jax" in told["versions"]
    assert told["command"] == f"python -m benchmarks --only=step --json={path}"
    line = "| `step/x` | torch+peft | 1.5 | 1.4 to 1.6 | 1 | 1.6 | s |"
    assert line in out.splitlines() and line in err.splitlines()


def test_a_wrong_comparison_ends_with_1_and_one_line(measured):
    code, out, err = measured(rows.Mismatch("the loss is 1 here and 2 there"))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: the loss is 1 here and 2 there"


def test_a_failure_keeps_the_rows_before_it(measured, tmp_path):
    path = tmp_path / "rows.json"
    code, _, _ = measured([ROW, rows.Mismatch("other numbers")], f"--json={path}")
    assert code == 1
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["step/x"]


def test_rows_that_need_a_folder_are_left_out_without_it(measured):
    code, _, err = measured(ROW)
    assert code == 0 and "padding/x is left out: it needs --glue=DIR" in err
    code, _, err = measured(ROW, "--only=padding")
    assert (code, err.count("\n")) == (2, 1)
    assert "padding/x cannot run without --glue=DIR" in err


def test_only_takes_beginnings_of_names():
    def names(only):
        return list(case.chosen(CASES, only, case.Options(glue="g", baseline="b"))[0])

    assert names("step/minilm_32x32") == ["step/minilm_32x32"]
    assert names("gemm,many/8") == ["gemm/minilm_32x128", "gemm/roberta_base_16x64"] + [
        "many/8x4"
    ]
    assert names("") == list(CASES)
    assert "step_nodrop/minilm_8x512" in names("step")
    with pytest.raises(UserError, match="no row begins with 'stop'; expected .*step"):
        names("stop")


def test_counts_are_better_when_they_are_smaller():
    assert rows.of_counts("m", "r", 2.0, 3.0, "MiB").ratio == 1.5
    assert rows.of_counts("m", "r", 0.0, 0.0, "MiB").ratio == 1.0


RUN = {
    "machine": {
        "cpu": "A Processor",
        "cores": 2,
        "memory_gib": 8.0,
        "system": "Linux",
        "device": "cpu",
        "devices": 1,
    },
    "versions": {"jax": "0.10"},
    "command": "python -m benchmarks --only=step",
    "date": "2026-11-29",
    "rows": [ROW.fields()],
    "details": [ROW.detail()],
}


def test_the_page_names_machine_versions_command_and_date():
    text = page.section(RUN)
    for part in ("A Processor", "2 cores", "jax 0.10", RUN["command"], RUN["date"]):
        assert part in text
    assert "| `step/x` | torch+peft | 1.5 |" in text
    assert "No row is behind its rival." in text


def test_the_page_says_where_we_are_behind():
    slow = ROW._replace(ratio=0.8).fields()
    text = page.section(RUN | {"rows": [slow, slow | {"rival": "lora"}]})
    assert "Behind the rival: `step/x` (0.80 of torch+peft)." in text


def test_the_page_has_laws_and_a_plot(tmp_path):
    grown = {"name": "growth/tokens", "unit": "token", "values": [1, 2, 4]}
    grown |= {"seconds": [0.3, 0.6, 1.8], "coefficients": [0.2, -0.05, 0.1]}
    details = [grown | {"largest_deviation": 0.031}]
    text = page.section(RUN | {"details": details})
    assert (
        "- tokens, n from 1 to 4: 200 ms - 50 ms x n + 100 ms x n²; no value is more "
        "than 3% off." in text
    )
    assert "](img/growth.png)" in text and "](img" not in page.section(RUN)
    plots.draw(details, tmp_path / "img" / "growth.png")
    assert (tmp_path / "img" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_docs_benchmarks_is_the_page_of_what_was_measured():
    """`python -m benchmarks --page` writes it again."""
    assert page.PAGE.read_text() == page.text(page.measured())


def test_every_subject_is_explained_on_the_page():
    text = (documented.ROOT / "docs" / "benchmarks.md").read_text()
    for subject in dict.fromkeys(name.split("/")[0] for name in CASES):
        assert re.search(rf"^\| `{subject}` \|", text, re.M), subject
