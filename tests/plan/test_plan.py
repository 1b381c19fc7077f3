"""Plans on fake CPU devices: the same code as for TPU slices, down to the compiler."""

import json

import jax
import numpy as np
import pytest
from plan.sizes import network, settings, summed
from process import run

from hypelora_jax import cli
from hypelora_jax.config.settings import from_dict
from hypelora_jax.errors import UserError
from hypelora_jax.plan import changes, cost, estimate_table, program
from hypelora_jax.plan import topology as topologies
from hypelora_jax.plan.estimate import Estimate, estimate, executed
from hypelora_jax.plan.topology import CPU, Chip, Rates, topology

KEYS = set(
    "fits hbm_bytes bytes_per_device flops collective_bytes roofline_seconds mfu "
    "global_batch changes".split()
)
FAKE = Chip(2**30, Rates(1e12, 1e11, 1e10), ())
SMOKE = ("--config=smoke", "--config.data.max_length=16")


TRANSFORMER = pytest.param("hyper_transformer", marks=pytest.mark.soak)


@pytest.mark.parametrize("method", ["hyper_mlp", TRANSFORMER])
def test_what_is_summed_over_chips_is_the_adapters_gradient(method):
    config = settings(
        method=method,
        hyper={"widths": [128], "width": 32, "heads": 2, "depth": 1, "ff": 256},
    )
    where = topology("cpu-4")
    step = program.build(config, where)
    found = estimate(config, where)
    loss_and_weight = 8
    assert found.collective_bytes == {"all-reduce": summed(step) + loss_and_weight}
    assert network(step) > 5 * summed(step)
    assert found.fits and found.roofline is None  # a CPU has no published figures


def test_two_hundred_and_fifty_six_chips_sum_no_more_than_four():
    flags = ["--config.optim.batch_size=256", "--topology=cpu-256"]
    done = run("plan", *SMOKE, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS and found["changes"] == [] and found["fits"]
    assert found["chips"] == found["global_batch"] == 256
    smoke = from_dict(cli.load_config("smoke", flags[:1]).to_dict())
    step = program.build(smoke, topology("cpu-4"))
    assert found["collective_bytes"] == {"all-reduce": summed(step) + 8}


def machine(needs):
    """`estimate` of a machine whose steps need what `needs(settings, chips)` says."""

    def estimate(config, where):
        chips = len(where.devices)
        if config.optim.batch_size % (chips * config.optim.accumulate):
            raise UserError("does not divide")
        peak = needs(config, chips)
        sizes = dict.fromkeys(("arguments", "outputs", "temporaries"), 10)
        return Estimate(
            fits=peak <= where.chip.hbm_bytes,
            bytes_per_device=sizes | {"peak": peak},
            flops=1,
            collective_bytes=None,
            hbm_traffic=None,
            roofline=None,
            mfu=None,
            global_batch=config.optim.batch_size,
            rows_per_chip=config.optim.batch_size // chips,
            chips=chips,
            compiler="",
        )

    return estimate


def found_changes(monkeypatch, needs, hbm=100, arguments=10, **sections):
    estimate = machine(needs)
    monkeypatch.setattr(changes, "estimate", estimate)
    chip = FAKE._replace(hbm_bytes=hbm)
    where = topologies.Topology("v5e:2x2", chip, [None] * 4)

    def find(name):
        count = int(np.prod([int(n) for n in name.split(":")[1].split("x")]))
        return topologies.Topology(name, chip, [None] * count)

    config = settings(**{"optim": {"batch_size": 64}} | sections)
    found = estimate(config, where)
    found.bytes_per_device["arguments"] = arguments
    assert not found.fits
    better = changes.changes(config, where, found, find)
    listed = estimate_table.as_dict(found, where, better)["changes"]
    assert [c["flags"] for c in listed] == [list(c.flags) for c in better]
    assert len(estimate_table.advice(found, better)) == max(1, len(better))
    return [" ".join(c.flags).replace("--config.", "") for c in better]


def rows(config, chips):
    """Memory that grows with the rows of a micro-batch; recomputing takes half."""
    of_one = config.optim.batch_size / chips / config.optim.accumulate
    return int(of_one * (20 if config.model.remat == "none" else 10))


def test_the_cheapest_change_is_the_fewest_micro_batches_then_recomputation(
    monkeypatch,
):
    assert found_changes(monkeypatch, rows) == [
        "optim.accumulate=4",  # 4 rows of 20
        "model.remat=layer optim.accumulate=2",  # 8 rows of 10, fewer parts than four
    ]
    assert found_changes(monkeypatch, rows, hbm=170) == [
        "optim.accumulate=2",
        "model.remat=layer",
    ]


def test_where_layers_are_recomputed_already_more_chips_come_next(monkeypatch):
    remat = {"model": {"remat": "layer"}}
    assert found_changes(monkeypatch, rows, **remat) == [
        "optim.accumulate=2",
        "--topology=v5e:2x4",
    ]


def test_weights_that_do_not_fit_are_cut_over_the_chips(monkeypatch):
    def needs(config, chips):
        return 400 // (config.mesh.fsdp if config.model.dtype == "float32" else 8)

    assert found_changes(monkeypatch, needs, arguments=400) == [
        "mesh.data=1 mesh.fsdp=4",
        "model.dtype=bfloat16",
    ]


def test_a_smaller_batch_is_the_last_resort(monkeypatch):
    def needs(config, chips):
        del chips
        return 101 - (config.optim.batch_size < 64)

    dtype = {"model": {"dtype": "bfloat16"}}
    assert found_changes(monkeypatch, needs, **dtype) == ["optim.batch_size=32"]


def test_where_nothing_helps_it_says_so(monkeypatch):
    assert found_changes(monkeypatch, lambda *_: 1000) == []


def test_a_step_that_compiles_and_is_too_large_does_not_fit():
    config, where = settings(), topology("cpu-2")
    found = estimate(config, where._replace(chip=FAKE._replace(hbm_bytes=1000)))
    assert not found.fits and 0 < found.mfu < 1 and found.compiler == ""
    assert found.bytes_per_device["peak"] > 1000
    (line,) = estimate_table.advice(found, [])
    assert line == "no change that was tried would fit"
    table = estimate_table.table(found, where)
    assert table.title == "cpu-2: does not fit"


def test_the_compilers_refusal_is_read_and_not_guessed(monkeypatch):
    class Refuses:
        def compile(self, compiler_options):
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
    json.dumps(estimate_table.as_dict(found, where, []))


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

    def flops(name):
        where = topology(name)
        return executed(config, where, program.build(config, where))[0]

    assert flops("cpu-1") / 2 < flops("cpu-2") < flops("cpu-1")


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
        ({"mesh": {"data": 3}}, "expected sizes whose product is the 2 devices"),
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
    given = {"source": "given", "width": 7}
    config = settings(condition=given)
    step = program.build(config, topology("cpu-2"))
    assert step.arguments[2]["condition"].shape == (config.optim.batch_size, 7)
    assert step.conditions == config.optim.batch_size
    assert "row" not in step.arguments[2], "each row has its own"
    config = settings(condition=given | {"distinct": 3})
    step = program.build(config, topology("cpu-2"))
    assert step.arguments[2]["condition"].shape == (3, 7)
    assert step.arguments[2]["row"].shape == (config.optim.batch_size,)
    assert step.conditions == 3


def test_conditions_of_tasks_and_of_rows_have_places_in_the_batch():
    task = settings(condition={"source": "task"}, tasks={"per_batch": 2})
    step = program.build(task, topology("cpu-2"))
    rows = task.optim.batch_size
    assert step.arguments[2]["which"].shape == (rows,) and step.conditions == rows
    assert step.arguments[2]["which"].dtype == np.int32
    config = settings(condition={"source": "task"}, tasks={"per_batch": 2, "file": "x"})
    step = program.build(config, topology("cpu-2"))
    assert step.arguments[2]["which"].shape == (2,) and step.conditions == 2
    assert "row" not in step.arguments[2], "groups in order"
    step = program.build(settings(condition={"source": "instance"}), topology("cpu-2"))
    assert "pooled" not in step.arguments[2] and step.conditions == rows
    config = settings(condition={"source": "set", "width": 7, "sentences": 3})
    step = program.build(config, topology("cpu-2"))
    assert step.arguments[2]["sentences"].shape == (rows, 3, 7)
