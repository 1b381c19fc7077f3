"""Plans on fake CPU devices: the same code as for TPU slices, down to the compiler."""

import dataclasses
import json

import jax
import pytest
from plan.sizes import network, summed
from process import run

from hypelora_jax import cli, trees
from hypelora_jax.plan import changes, cost, program, report
from hypelora_jax.plan import topology as topologies
from hypelora_jax.plan.estimate import estimate
from hypelora_jax.plan.topology import CPU, Chip, topology
from hypelora_jax.settings import from_dict
from hypelora_jax.train import setup
from hypelora_jax.types import UserError

KEYS = set(
    "fits hbm_bytes bytes_per_device flops collective_bytes roofline_seconds mfu "
    "global_batch changes".split()
)
FAKE = Chip(2**30, 1e12, 1e11, 1e10, ())
SMOKE = ("--config=smoke", "--config.data.max_length=16")


def settings(**sections):
    tree = {
        "model": {"path": "random:tiny"},
        "data": {"source": "synthetic", "max_length": 16},
        "hyper": {"widths": [64], "cond_dim": 16},
        "lora": {"rank": 2},
        "optim": {"batch_size": 32},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return from_dict(tree)


@pytest.mark.parametrize("method", ["hyper_mlp", "hyper_transformer"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_summed_over_chips_is_the_adapters_gradient(method, accumulate):
    config = settings(
        method=method,
        optim={"accumulate": accumulate},
        hyper={"width": 16, "heads": 2, "depth": 1, "ff": 32},
    )
    where = topology("cpu-4")
    step = program.build(config, where)
    found = estimate(config, where)
    loss_and_weight = 8
    assert found.collective_bytes == {"all-reduce": summed(step) + loss_and_weight}
    assert network(step) > 5 * summed(step)


def test_the_state_planned_for_is_the_state_trained():
    config = settings()
    where = topology("cpu-1")
    corpus = setup.load_corpus(config)
    bench = setup.workbench(config, corpus.task)
    state, _, _ = setup.start(bench, 10)
    planned, frozen, _ = program.build(config, where).arguments

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shapes(planned) == shapes(state)
    assert shapes(frozen) == shapes(bench.frozen)
    assert program.bytes_on_one(planned.params) == trees.nbytes(state.params)


def test_two_hundred_and_fifty_six_chips_sum_no_more_than_four():
    batch = [f"--config.optim.batch_size={n}" for n in (256, 512)]
    few = run("plan", *SMOKE, batch[0], "--topology=cpu-4")
    many = run("plan", *SMOKE, batch[1], "--topology=cpu-256")
    assert (few.returncode, many.returncode) == (0, 0), many.stderr
    few, many = json.loads(few.stdout), json.loads(many.stdout)
    assert few.keys() >= KEYS and many["chips"] == 256
    assert few["collective_bytes"] == many["collective_bytes"]
    assert many["global_batch"] == 512 and many["changes"] == []


def small(config, where, fraction: float):
    """The slice with chips that have only a part of the memory the step wants."""
    wanted = estimate(config, where).bytes_per_device
    room = wanted["arguments"] + fraction * (wanted["peak"] - wanted["arguments"])
    return where._replace(chip=FAKE._replace(hbm_bytes=int(room)))


def test_what_does_not_fit_comes_with_two_changes_that_do():
    config = settings(method="full", optim={"batch_size": 256}, data={"max_length": 64})
    where = small(config, topology("cpu-2"), 0.6)
    found = estimate(config, where)
    assert not found.fits and found.mfu > 0
    better = changes.changes(config, where, found)
    assert [c.flags for c in better] == [
        ("--config.optim.accumulate=2",),
        ("--config.model.remat=layer",),
    ]
    for change in better:
        fields = {}
        for flag in change.flags:
            name, value = flag.removeprefix("--config.").split("=")
            fields[name] = int(value) if value.isdigit() else value
        again = estimate(changes.with_fields(config, fields), where)
        assert again.fits
        assert again.bytes_per_device == change.estimate.bytes_per_device
    listed = report.as_dict(found, where, better)["changes"]
    assert [c["flags"] for c in listed] == [list(c.flags) for c in better]
    assert len(report.advice(found, better)) == 2


def test_where_nothing_helps_it_says_so():
    config = settings(optim={"batch_size": 2})
    where = topology("cpu-2")
    where = where._replace(chip=FAKE._replace(hbm_bytes=1000))
    found = estimate(config, where)
    assert changes.changes(config, where, found) == []
    assert report.advice(found, []) == ["no change that was tried would fit"]


def test_the_compilers_refusal_is_read_and_not_guessed(monkeypatch):
    class Refuses:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
                "required for HLO temporaries (36.69G) exceeds available HBM (15.75G)."
            )

    config, where = settings(), topology("cpu-2")
    step = program.build(config, where)
    arguments = program.bytes_on_one(step.arguments)
    real = program.build

    def build(given, place):
        step = real(given, place)
        if len(place.devices) == 1:  # where FLOPs are counted
            return step

        class Function:
            def lower(self, *_):
                return Refuses()

        return step._replace(function=Function())

    monkeypatch.setattr(program, "build", build)
    found = estimate(config, where)
    assert not found.fits and "36.69G" in found.compiler
    temporaries = round(36.69 * 2**30)
    assert found.bytes_per_device["temporaries"] == temporaries
    assert found.bytes_per_device["peak"] == temporaries + arguments
    assert found.collective_bytes is None and found.flops > 0
    json.dumps(report.as_dict(found, where, []))


def test_roofline_by_hand():
    line = cost.roofline(
        FAKE, 2e12, 1e11, {"all-reduce": 10**9, "all-gather": 10**9}, 4
    )
    assert line.compute == 2.0 and line.hbm == 1.0
    assert line.ici == pytest.approx((2 + 1) * 0.75 * 0.1)
    assert line.seconds == 2.0 and line.bound == "compute"
    assert cost.roofline(CPU, 1, 1, {}, 4) is None


def test_each_chip_runs_the_hyper_network_itself():
    config = settings()
    one = estimate(config, topology("cpu-1")).flops
    two = estimate(config, topology("cpu-2")).flops
    assert one / 2 < two < one


@pytest.mark.parametrize(
    ("path", "layers"),
    [
        ("FacebookAI/roberta-large", 24),
        ("roberta-base", 12),
        ("minilm", 6),
        ("random:tiny", 2),
    ],
)
def test_sizes_are_known_without_a_download(path, layers):
    assert program.encoder_config(path).layers == layers


def test_a_folder_says_its_sizes(tmp_path):
    config = {
        "model_type": "bert",
        "vocab_size": 99,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 5,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "hidden_act": "gelu",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert program.encoder_config(str(tmp_path)).layers == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"path": "org/unheard-of"}}, "whose sizes are not known here"),
        ({"optim": {"batch_size": 3}}, "multiple of the 2 devices"),
        ({"data": {"max_length": 4096}}, "has room for 512 tokens"),
        ({"mesh": {"data": 3}}, "wanted sizes whose product is the 2 devices"),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        program.build(settings(**change), topology("cpu-2"))


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "", "cpu-0", "cpu:4"])
def test_an_unknown_slice_is_refused_with_the_known_ones(name, capsys):
    assert cli.main(["plan", "--config=smoke", f"--topology={name}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "v5e: 1x1 2x2" in err and "v5p: 2x2x1" in err and "cpu-N" in err


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["plan", "--config=smoke", "--topology=v5e:2x2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "pip install 'hypelora_jax[plan]'" in err


def test_larger_slices_of_the_same_chip():
    assert topologies.larger("v5e:8x8") == ["v5e:8x16", "v5e:16x16"]
    assert topologies.larger("v5p:8x8x8") == topologies.larger("cpu-4") == []


def test_conditioning_that_is_given_has_a_place_in_the_batch():
    config = settings(hyper={"cond": "given"})
    step = program.build(config, topology("cpu-2"))
    assert step.arguments[2]["cond"].shape == (step.model.parts.hyper.slots, 16)
    assert dataclasses.replace(config).hyper.cond == "given"
