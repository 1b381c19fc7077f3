"""Programs that one thread compiles in order, and functions that wait for them."""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from hypelora_jax.sharding import memory

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

    The thread starts when a program is called for the second time, so that it does not
    slow down the first step. It calls `function.lower(*shapes).compile()`. JAX then has
    the program, and a call of the function with arrays of these shapes and shardings
    runs it. If they differ in anything, that call compiles a program of its own, so the
    results never depend on what was announced.

    Leaving the context drops the programs that are waiting. One that is being compiled
    is finished, because XLA cannot stop in the middle; the process ends after that.

    Args:
      show: shows which program the run is waiting for.
    """

    def __init__(self, show: Show):
        self._show = show
        self._jobs: dict[Hashable, Job] = {}
        self._called: set[Hashable] = set()
        self._futures: dict[Hashable, Future] = {}
        self._thread = ThreadPoolExecutor(1, "compile")

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def announce(self, jobs: Iterable[Job]) -> None:
        """Say which programs will be needed, after those announced before."""
        for job in jobs:
            self._jobs.setdefault(_key(job.name, job.batch), job)

    def waits(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the function of a name so that a call waits for its program.

        An error of the compilation is raised by the first call that needs the program.
        """

        def call(*args: Any) -> Any:
            key = _key(name, args[-1])
            if self._called and not self._futures:
                self._start()
            if key in self._called or key not in self._jobs:
                return function(*args)
            self._called.add(key)
            future = self._futures.get(key)
            if future is not None and future.done():
                future.result()
                return function(*args)
            self._show(f"compiling {self._ready()} of {len(self._jobs)}")
            memory.trim()  # what loading has left, before the compiler takes its own
            try:
                # The thread may be busy with another program. Then this call compiles
                # its own, which no longer has to be done ahead.
                if future is not None and not future.cancel():
                    future.result()
                return function(*args)
            finally:
                memory.trim()
                self._show("")

        return call

    def _start(self) -> None:
        for key, job in self._jobs.items():
            if key not in self._called:
                self._futures[key] = self._thread.submit(_compile, job)

    def _ready(self) -> int:
        """Return the number of programs that are compiled or were called."""
        done = {key for key, future in self._futures.items() if future.done()}
        return len(done | self._called)


def _key(name: str, batch: Any) -> Hashable:
    shapes = ((jax.tree_util.keystr(p), x.shape) for p, x in _leaves(batch))
    return name, tuple(shapes)


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _compile(job: Job) -> None:
    job.function.lower(*job.args()).compile()
    memory.trim()


def abstract(tree: Any) -> Any:
    """Return the shape, type and sharding of each array of a tree."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
