"""The Python of README, quickstart and notebook is one text, and it runs."""

import re

import documented
import jax
import jupytext
import numpy as np
import pytest

ROOT = documented.ROOT
LINES = 150


def blocks(text: str) -> list[str]:
    """The Python between fences."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


README = (ROOT / "README.md").read_text()
QUICKSTART = blocks((ROOT / "docs" / "quickstart.md").read_text())


def test_readme_is_a_page():
    assert len(README.splitlines()) <= LINES
    assert "OWNER" not in README and "lead nowhere" not in README


def test_three_places_show_the_same_lines():
    (block,) = blocks(README)
    assert QUICKSTART[0] == block
    book = jupytext.read(ROOT / "notebooks" / "quickstart.ipynb")
    assert block.rstrip() in [cell.source for cell in book.cells]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The names that the lines leave, and what they print."""
    names, printed = {}, []
    (block,) = blocks(README)
    exec(compile(block, "README.md", "exec"), names | {"print": printed.append}, names)
    return names, printed


def test_they_do_what_they_say(space):
    names, (shape, before, after) = space
    stated = re.search(r"width, rank: (\(.*\))", README)[1]
    assert str(shape) == stated
    assert float(names["info"]["loss"]) < 0.3 < float(np.log(2))
    truth = np.array([1, 0, 1, 0, 1, 0])
    probs = names["calibrator"](names["logits"])
    raw = np.asarray(jax.nn.softmax(names["logits"]))

    def nll(p):
        return -np.log(p[np.arange(6), truth]).mean()

    assert nll(probs) < nll(raw)
    assert 0.5 < float(after) < float(before) < 1, "it was over-confident"
    for text, value in re.findall(r"# (before|after): (0\.\d+)", README):
        got = {"before": before, "after": after}[text]
        assert float(got) == pytest.approx(float(value), abs=0.05)


def test_the_quickstart_goes_on(space, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = dict(space[0])
    for block in QUICKSTART[1:]:
        exec(compile(block, "docs/quickstart.md", "exec"), names)
    assert set(names["found"]["nll"]) == {"value", "low", "high"}
    assert "confidence" in capsys.readouterr().out
    assert (tmp_path / "runs" / "python" / "report").is_dir()
