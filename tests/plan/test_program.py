"""What a plan compiles is what a run trains: the same shapes, cut in the same way."""

import jax
import pytest
from plan.sizes import settings

from hypelora_jax import trees
from hypelora_jax.errors import UserError
from hypelora_jax.plan import program
from hypelora_jax.plan.topology import topology
from hypelora_jax.train import session as session_lib
from hypelora_jax.train.training import abstract_state


@pytest.fixture(autouse=True, scope="module")
def eight():
    """The 8 devices of all tests, before a topology asks for fewer."""
    return jax.devices()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"uncertainty": {"kind": "deep_ensemble", "samples": 2}},
        {"uncertainty": {"kind": "hyper_ensemble", "samples": 2}},
    ],
    ids=["plain", "seeds", "conditions"],
)
def test_the_state_planned_for_is_the_state_trained(sections):
    config = settings(**sections)
    where = topology("cpu-1")
    corpus = session_lib.load_corpus(config)
    session = session_lib.open_session(config, corpus.task)
    state = abstract_state(session._replace(total_steps=10))
    step = program.build(config, where)
    planned, frozen, _ = step.arguments

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shapes(planned) == shapes(state)
    assert shapes(frozen) == shapes(session.frozen)
    assert program.bytes_on_one(planned.params) == trees.nbytes(state.params)
    made, _ = step.function.trace(*step.arguments).out_info
    assert shapes(made) == shapes(state)


def test_a_head_gets_the_entries_that_it_reads():
    config = settings(head={"kind": "label_text"}, tasks={"file": "tasks.yaml"})
    step = program.build(config, topology("cpu-1"))
    state, frozen, batch = step.arguments
    assert batch["labels"].shape == (32, 2, 384)  # two classes; MiniLM embeds names
    assert state.params["head"]["label"]["kernel"].shape == (384, 128)
    made, _ = step.function.trace(state, frozen, batch).out_info
    assert made.params["head"].keys() == state.params["head"].keys()


@pytest.mark.parametrize(("sign", "parts"), [(0, 1), (2, 6)])
def test_a_network_of_descriptions_has_the_width_of_the_encoder(sign, parts):
    own = {"source": "text", "sign": sign, "whiten": True}
    config = settings(condition=own, tasks={"file": "tasks.yaml"})
    _, frozen, batch = program.build(config, topology("cpu-1")).arguments
    assert batch["condition"].shape[-1] == 384 * parts
    assert frozen["cond"]["standard"]["whitening"].shape == (384, 384)


def test_what_is_planned_for_is_cut_as_the_rules_say():
    config = settings(mesh={"data": 1, "fsdp": 2, "model": 2})
    state, frozen, _ = program.build(config, topology("cpu-4")).arguments
    whole = trees.nbytes(frozen)
    assert program.bytes_on_one(frozen) < 0.4 * whole  # norms and biases stay whole
    for adam in (state.opt_state, state.params):
        assert program.bytes_on_one(adam) < sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(adam)
        )
    with pytest.raises(UserError, match="does not divide"):
        thirds = settings(mesh={"data": 1, "fsdp": 3}, optim={"batch_size": 33})
        program.build(thirds, topology("cpu-3"))
