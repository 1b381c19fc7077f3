"""A process of several that is lost or hangs ends all others in bounded time.

The processes join as `experiments/train.py` does and then compute a sum over all of
them again and again, which is what a training loop waits in.
"""

import signal
import time

import process
import pytest

PEER = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from hypelora_jax.sharding import processes
timeout = int(sys.argv[2])
processes.initialize(sys.argv[1], **{"heartbeat_timeout": timeout} if timeout else {})
mesh = jax.make_mesh((jax.device_count(),), ("data",))
here, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
x = jax.make_array_from_callback((jax.device_count(),), here, lambda i: np.ones(1))
total = jax.jit(lambda x: x.sum(), out_shardings=everywhere)
assert float(total(x)) == jax.process_count()
print("joined", flush=True)
while True:
    float(total(x))
"""


def start_peers(count: int, timeout: int) -> list:
    where = f"127.0.0.1:{process.free_port()}"
    return [
        process.python("-c", PEER, f"{where},{count},{rank}", str(timeout))
        for rank in range(count)
    ]


def wait_joined(peer) -> None:
    for line in peer.stdout:
        if line == "joined\n":
            return
    raise AssertionError(peer.stderr.read()[-2000:])


@pytest.mark.fault("a process of several killed or hung", "the others exit in 120 s")
@pytest.mark.parametrize(
    "count, lost, number, timeout",
    [
        (2, 1, signal.SIGKILL, 10),
        pytest.param(4, 2, signal.SIGKILL, 0, marks=pytest.mark.soak),
        pytest.param(4, 0, signal.SIGKILL, 0, marks=pytest.mark.soak),
        pytest.param(4, 3, signal.SIGSTOP, 0, marks=pytest.mark.soak),
    ],
    ids=["short", "one of four", "the first of four", "one of four hangs"],
)
def test_a_lost_peer_ends_all(count, lost, number, timeout):
    peers = start_peers(count, timeout)
    try:
        for peer in peers:
            wait_joined(peer)
        peers[lost].send_signal(number)
        limit = time.monotonic() + 120
        for rank, peer in enumerate(peers):
            if rank == lost:
                continue
            _, err = peer.communicate(timeout=limit - time.monotonic())
            assert peer.returncode != 0
            assert "another task died" in err or "coordination service" in err.lower()
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()
