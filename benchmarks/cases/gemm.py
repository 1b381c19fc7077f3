"""Share of the machine's rate of float32 products that a training step reaches.

What is counted is the arithmetic that a LoRA step needs, in products of matrices, for N
tokens in rows of T, L layers of width D and F in between, rank r on q and v:

- forward, a layer: 2 N (4 D^2 + 2 D F), attention 4 N T D, factors 2 * 4 N D r;
- backward, a layer: the same for the gradients of its inputs, attention 8 N T D, and
  the gradients of the factors, 2 * 4 N D r;
- the lowest layer has no gradient of its inputs: 6 N D^2 of q, k and v, 2 N T D of
  attention's keys and 2 * 2 N D r of the factors fall away;
- no frozen kernel has a gradient; the head counts three times 2 B (D^2 + D Y).

Softmax, norms, GELU, dropout and the optimizer count nothing, so the share of 1 cannot
be reached.
"""

import functools
import statistics
from collections.abc import Iterator

from benchmarks import machine, ours, timing
from benchmarks.case import Case, Options
from benchmarks.cases.step import SHAPES, Shape
from benchmarks.rows import Row
from hypelora_jax.families.sizes import EncoderConfig

RANK, SITES = 8, 2  # q and v


def flops(config: EncoderConfig, rows: int, tokens: int) -> int:
    """Floating-point operations of a LoRA step, as the module says."""
    n, t, d, ff = rows * tokens, tokens, config.width, config.ff
    dense = 2 * n * (4 * d * d + 2 * d * ff)
    factors = SITES * 4 * n * d * RANK
    forward = dense + 4 * n * t * d + factors
    backward = dense + 8 * n * t * d + 2 * factors
    lowest = 6 * n * d * d + 2 * n * t * d + factors // 2
    head = 3 * 2 * rows * (d * d + d * ours.CLASSES)
    return config.layers * (forward + backward) - lowest + head


def share(shape: Shape, options: Options) -> Iterator[Row]:
    """The rate of our step without dropout, and that of a large square product."""
    own = ours.ours(shape.model)
    step = ours.step(own, shape.rows, shape.tokens, False)
    count = flops(own.config, shape.rows, shape.tokens)
    step.run()
    ratios, rates, products = [], [], []
    for _ in range(timing.LEAST):
        by_library = machine.product_rates()
        seconds = min(timing.once(step.run)[0] for _ in range(2))
        rates.append(count / seconds / 1e9)
        products.append(max(by_library.values()) / 1e9)
        ratios.append(rates[-1] / products[-1])
    found = timing.interval(ratios)
    reached, possible = statistics.median(rates), statistics.median(products)
    notes = {"gflop_a_step": count / 1e9}
    yield Row(
        f"gemm/{shape.name}", "product", *found, reached, possible, "GFLOP/s", notes
    )


CASES = {
    f"gemm/{shape.name}": Case(functools.partial(share, shape))
    for shape in (SHAPES[1], SHAPES[3])
}
