"""The commands that the benchmark starts, and what it reads of them."""

import sys

import corpora
import pytest

from benchmarks import load, processes
from benchmarks.cases import epoch, serve, start
from hypelora_jax import cli
from hypelora_jax.config.loading import load_settings
from hypelora_jax.train.session import load_corpus


def settings_of(argv):
    """Settings of a `hypelora train`, through the real parser."""
    rest, overrides = cli._split(list(argv))
    args = cli.parser(rest).parse_args(rest)
    return load_settings(args.config, overrides)


def test_the_torch_loop_gets_the_texts_of_our_command(tmp_path):
    corpora.glue(tmp_path)
    module, name, *argv = epoch.command(str(tmp_path), "x")
    assert (module, name) == ("-m", "hypelora_jax.cli")
    settings, found = settings_of(argv), epoch.texts(str(tmp_path))
    assert (settings.method, settings.optim.num_epochs) == ("lora", 1)
    splits = load_corpus(settings).splits
    assert set(found) == {"train", "calibration", "validation"} <= set(splits)
    for split, rows in found.items():
        assert [text for text, _ in rows] == list(splits[split].text)
        assert [label for _, label in rows] == splits[split].label.tolist()


@pytest.mark.parametrize("argv", [start.TRAIN, serve.TRAIN])
def test_the_other_trainings_parse(argv):
    assert settings_of([*argv, "--workdir=x"]).model.path == "minilm"


def test_seconds_of_compilation_are_summed():
    log = "I Finished XLA compilation of jit(f) in 0.25 sec\nother\n"
    log += "I Finished XLA compilation of jit(step) in 1.5e+00 sec\n"
    assert start._compiling(log) == 1.75


def test_a_command_tells_its_time_and_its_last_line():
    done = processes.python("-c", "import json; print(1); print(json.dumps({'a': 2}))")
    assert done.told() == {"a": 2} and done.seconds > 0 and done.cpu > 0
    with pytest.raises(RuntimeError, match="failed: .*no such thing"):
        processes.python("-c", "raise SystemExit('no such thing')")


def test_the_peak_is_of_the_program_and_not_of_the_one_that_started_it():
    held = bytearray(300 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "from benchmarks.processes import peak_mib; print(peak_mib())"
    done = processes.run([sys.executable, "-c", code], processes.environment())
    assert float(done.out) < 200
    assert processes.peak_mib() > 300


def test_answers_are_compared_by_their_largest_difference():
    want = {"probs": {"a": 0.25, "b": 0.75}}
    assert load.off_by({"probs": {"a": 0.25, "b": 0.5}}, want) == 0.25
    assert load.off_by({"score": 2.0}, {"score": 1.5}) == 0.5
