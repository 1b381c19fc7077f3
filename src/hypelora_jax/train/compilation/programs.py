"""Programs that one thread compiles in order, and functions that wait for them."""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

Show = Callable[[str], None]  # shows a text in the progress bar; "" removes it


class Job(NamedTuple):
    """A program to compile: `function` for the shapes in `args()`.

    `name` and the shapes of `batch`, the last argument, identify the program among
    those of the run. `args` is called in the thread, because it may compile, too.
    """

    name: str
    function: Any  # jitted
    batch: Any
    args: Callable[[], tuple]


class Programs:
    """Compiles programs in the order in which they are announced; a context manager.

    The thread calls `function.lower(*shapes).compile()`. JAX then has the program, and
    a call of the function with arrays of these shapes and shardings runs it. If they
    differ in anything, that call compiles a program of its own, so the results never
    depend on what was announced.

    Leaving the context drops the programs that are waiting. One that is being compiled
    is finished, because XLA cannot stop in the middle; the process ends after that.

    Args:
      show: shows which program the run is waiting for.
    """

    def __init__(self, show: Show):
        self._show = show
        self._thread = ThreadPoolExecutor(1, "compile")
        self._futures: dict[Hashable, Future] = {}
        self._waiting: set[Hashable] = set()  # programs that were not called yet

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def announce(self, jobs: Iterable[Job]) -> None:
        """Compile the programs, after those that were announced before."""
        for job in jobs:
            key = _key(job.name, job.batch)
            if key not in self._futures:
                self._futures[key] = self._thread.submit(_compile, job)
                self._waiting.add(key)

    def waits(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the function of a name so that a call waits for its program.

        An error of the compilation is raised by the first call that needs the program.
        """

        def call(*args: Any) -> Any:
            key = _key(name, args[-1])
            if key not in self._waiting:
                return function(*args)
            self._waiting.remove(key)
            future = self._futures[key]
            if future.done():
                future.result()
                return function(*args)
            done = sum(one.done() for one in self._futures.values())
            self._show(f"compiling {done + 1} of {len(self._futures)}")
            try:
                # The thread may be busy with another program. Then this call compiles
                # its own, which no longer has to be done ahead.
                if not future.cancel():
                    future.result()
                return function(*args)
            finally:
                self._show("")

        return call


def _key(name: str, batch: Any) -> Hashable:
    shapes = ((jax.tree_util.keystr(p), x.shape) for p, x in _leaves(batch))
    return name, tuple(shapes)


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _compile(job: Job) -> None:
    job.function.lower(*job.args()).compile()


def abstract(tree: Any) -> Any:
    """Return the shape, type and sharding of each array of a tree."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
