"""The torch side of the benchmark computes what ours does, and is refused otherwise."""

import pytest
import torch

from benchmarks import ours, processes, timing, torch_rival
from benchmarks.case import Options
from benchmarks.cases import device, many, metrics
from benchmarks.cases.step import COMPILED, Shape
from benchmarks.rows import Mismatch

# peft 0.21 asks transformers 5.23 for a name that goes with its version 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:The PEFT config's `base_model_name_or_path`:UserWarning",
)
TINY = "random:tiny"


@pytest.fixture(params=torch_rival.ATTENTION)
def model(request):
    return torch_rival.adapted(ours.ours(TINY), request.param)


def test_both_sides_have_the_same_loss_and_gradients(model):
    torch_rival.check_same(ours.ours(TINY), model)


def test_another_weight_is_a_mismatch(model):
    frozen = [p for n, p in model.named_parameters() if "key.weight" in n]
    with torch.no_grad():
        frozen[0].mul_(1.5)
    with pytest.raises(Mismatch, match="differ by|the loss is"):
        torch_rival.check_same(ours.ours(TINY), model)


def test_a_head_that_does_not_train_is_a_mismatch(model):
    for name, p in model.named_parameters():
        if "classifier" in name:
            p.requires_grad = False
    with pytest.raises(Mismatch, match="only one side trains .*classifier"):
        torch_rival.check_same(ours.ours(TINY), model)


def test_both_take_the_same_steps(model):
    """Without dropout, from the same weights, with the same optimizer."""
    own = ours.ours(TINY)
    left = ours.step(own, 4, 8, dropout=False)
    right = torch_rival.step(own, model, 4, 8, dropout=False)
    for _ in range(5):
        assert right() == pytest.approx(float(left.run()["loss"]), rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about torch
def test_compiled_layers_compute_the_same():
    own = ours.ours(TINY)
    model = torch_rival.adapted(own, "sdpa")
    torch_rival.compile_layers(model)
    fault, seconds = torch_rival.tried(lambda: torch_rival.check_same(own, model))
    assert fault == "" and seconds > 0


def test_a_step_that_takes_too_long_is_given_up():
    def forever():
        while True:
            pass

    fault, seconds = torch_rival.tried(forever, seconds=1)
    assert fault == "TimeoutError: took more than 1 s" and seconds >= 1


def test_the_process_of_the_rival_answers_line_by_line():
    child = processes.Child("-m", "benchmarks.programs.torch_steps", TINY)
    assert child.ask([]) == {"settings": ["eager", "sdpa", COMPILED]}
    first = child.ask(["sdpa", 4, 8, False, True])
    assert first["fault"] == "" and first["seconds"] > 0
    later = timing.Spent(**child.ask(["sdpa", 4, 8, False, False]))
    assert min(later) > 0
    with pytest.raises(RuntimeError, match="torch_steps random:tiny ended with 1"):
        child.ask(["flash", 4, 8, False, False])


def test_the_program_without_jax_trains():
    told = torch_rival.trained(ours.ours(TINY), "sdpa", rows=4, tokens=8, steps=3)
    told = told.told()
    assert len(told["seconds"]) == 3 and told["peak_mib"] > 100


def test_the_rows_of_a_device_are_measured_on_a_cpu_too(monkeypatch):
    """At a tiny size; memory and MFU are those of a GPU and have no rows here."""
    monkeypatch.setattr(device, "environment", without_flags)
    sizes = Shape(TINY, 4, 16), True, "cpu", "float32", 3
    (row,) = device.compared(device.Setting(*sizes, compiled=False), Options())
    assert row.name == "device/tiny_4x16_fused"
    assert row.ours > 0 < row.theirs and row.unit == "s"
    assert row.notes["distance_of_logits"] < 1e-4
    assert set(row.notes["seconds"]) == {"sdpa"} and not row.notes["faults"]


def without_flags(platform):
    """The environment, less the flags of these tests, which other processes lack."""
    return device.processes.environment(JAX_PLATFORMS=platform)


def test_peft_gives_each_row_its_adapter_as_ours(monkeypatch):
    monkeypatch.setattr(many, "MODEL", TINY)
    monkeypatch.setattr(many, "TOKENS", 8)
    many.many.cache_clear()
    found = many.many()
    logits = many.way(found, many.ROWS)()
    for rival in many._theirs(found).values():
        many._check(logits, rival())
    many.many.cache_clear()


@pytest.mark.parametrize("name", metrics.NAMES)
def test_metrics_agree(name):
    probs, labels = metrics.drawn()
    value = getattr(metrics.metrics, name)(probs, labels)
    for rival in metrics.rivals(name).values():
        assert rival() == pytest.approx(value, abs=metrics.TOLERANCE)
