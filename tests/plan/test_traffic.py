"""The reader of compiled programs, against hand-counted ones and XLA's own counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.plan import cost, traffic
from hypelora_jax.sharding.mesh import make_mesh

LOOP = """HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

%cut (p: f32[5,4], i: s32[]) -> f32[4] {
  %p = f32[5,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,4]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,4}
  ROOT %out = f32[4]{0} bitcast(%row)
}

%body (t: (s32[], f32[5,4], f32[4])) -> (s32[], f32[5,4], f32[4]) {
  %t = (s32[], f32[5,4]{1,0}, f32[4]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t), index=0
  %all = f32[5,4]{1,0} get-tuple-element(%t), index=1
  %row.1 = f32[4]{0:T(128)} fusion(%all, %i.1), kind=kLoop, calls=%cut
  %sum = f32[4]{0:T(128)S(1)} all-reduce(%row.1), replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], f32[5,4]{1,0}, f32[4]{0}) tuple(%i.1, %all, %sum)
}

%cond (t.1: (s32[], f32[5,4], f32[4])) -> pred[] {
  %t.1 = (s32[], f32[5,4]{1,0}, f32[4]{0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i.2 = s32[] get-tuple-element(%t.1), index=0
  ROOT %lt = pred[] compare(%i.2, %n), direction=LT
}

ENTRY %main (a: f32[5,4], b: f32[4]) -> f32[8] {
  %a = f32[5,4]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %c = s32[] constant(0)
  %start = (s32[], f32[5,4]{1,0}, f32[4]{0}) tuple(%c, %a, %b)
  %loop = (s32[], f32[5,4]{1,0}, f32[4]{0}) while(%start), condition=%cond, body=%body
  %last = f32[4]{0} get-tuple-element(%loop), index=2
  ROOT %both = f32[8]{0} all-gather(%last), replica_groups={{0,1}}, dimensions={0}
}
"""


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    assert traffic.collective_bytes(LOOP) == {"all-reduce": 5 * 16, "all-gather": 32}


def test_a_collective_that_is_started_and_awaited_counts_once():
    text = LOOP.replace(
        "  ROOT %both = f32[8]{0} all-gather(%last), replica_groups={{0,1}}, "
        "dimensions={0}\n",
        "  %began = (f32[4]{0}, f32[8]{0}) all-gather-start(%last), dimensions={0}\n"
        "  ROOT %both = f32[8]{0} all-gather-done(%began)\n",
    )
    text = text.replace(
        "%sum = f32[4]{0:T(128)S(1)} all-reduce(%row.1)",
        "%sum.1 = f32[4]{0} all-reduce-start(%row.1)",
    ).replace(
        "  ROOT %next",
        "  %sum = f32[4]{0:T(128)S(1)} all-reduce-done(%sum.1)\n  ROOT %next",
    )
    assert text.count("-start(") == text.count("-done(") == 2
    assert traffic.collective_bytes(text) == {"all-reduce": 5 * 16, "all-gather": 32}


def test_traffic_counts_slices_and_loops_and_leaves_on_chip_memory_out():
    gathered = 16 + 32
    a_trip = (
        16 + 4 + 16
    ) + 16  # slice, index, row written; row read, sum stays on chip
    assert traffic.memory_bytes(LOOP) == gathered + 5 * a_trip
    assert traffic.memory_bytes(LOOP, loops=False) == gathered + a_trip
    assert (
        traffic.memory_bytes(LOOP, hbm_only=False, loops=False)
        == gathered + a_trip + 16
    )


def test_a_loop_without_one_bound_is_an_error_and_not_a_guess():
    text = LOOP.replace("%n = s32[]{:T(128)} constant(5)", "%n = s32[] copy(%i.2)")
    with pytest.raises(ValueError, match="no single bound"):
        traffic.collective_bytes(text)


def layers(x_BD, w_LDD):
    def body(x_BD, w_DD):
        return jnp.tanh(x_BD @ w_DD), None

    return jnp.sum(jax.lax.scan(body, x_BD, w_LDD)[0])


def test_flops_of_a_scan_are_those_xla_counts_for_the_unrolled_program():
    x_BD, w_LDD = jnp.ones((64, 128)), jnp.ones((6, 128, 128))

    def unrolled(x_BD, w_LDD):
        for w_DD in w_LDD:
            x_BD = jnp.tanh(x_BD @ w_DD)
        return jnp.sum(x_BD)

    counted = cost.matmul_flops(jax.make_jaxpr(jax.grad(layers, 1))(x_BD, w_LDD))
    assert counted == 3 * 6 * 2 * 64 * 128 * 128  # one product forward, two backward
    xla = jax.jit(jax.grad(unrolled, (0, 1))).lower(x_BD, w_LDD).compile()
    assert counted == pytest.approx(xla.cost_analysis()["flops"], rel=0.05)


def test_recomputation_counts():
    x_BD, w_LDD = jnp.ones((8, 32)), jnp.ones((6, 32, 32))
    plain = jax.make_jaxpr(jax.grad(layers, 1))(x_BD, w_LDD)

    def again(x_BD, w_LDD):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
        return jnp.sum(jax.lax.scan(body, x_BD, w_LDD)[0])

    more = jax.make_jaxpr(jax.grad(again, 1))(x_BD, w_LDD)
    one = 2 * 8 * 32 * 32
    assert cost.matmul_flops(more) - cost.matmul_flops(plain) == 6 * one


def test_collectives_of_a_real_program_are_the_bytes_it_sums():
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, model=1), jax.devices()[:4])
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    step = jax.jit(jax.grad(layers, 1), in_shardings=(rows, whole), out_shardings=whole)
    x_BD, w_LDD = jnp.ones((8, 32)), jnp.ones((6, 32, 32))
    text = step.lower(x_BD, w_LDD).compile().as_text()
    assert traffic.collective_bytes(text) == {"all-reduce": 6 * 32 * 32 * 4}


def test_traffic_without_loops_is_what_xla_counts():
    x_BD, w_LDD = jnp.ones((64, 256)), jnp.ones((6, 256, 256))
    program = jax.jit(jax.grad(layers, (0, 1))).lower(x_BD, w_LDD).compile()
    ours = traffic.memory_bytes(program.as_text(), hbm_only=False, loops=False)
    assert ours == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.2)
    assert traffic.memory_bytes(program.as_text()) > 3 * ours
