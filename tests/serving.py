"""A service on loopback: in a thread of this process, or in a process of its own."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import process

from hypelora_jax.serve import server as servers
from hypelora_jax.serve.limits import Limits

JSON = {"content-type": "application/json"}


def call(port, method, path, body=None, headers=JSON):
    """(status, headers, text) of one request on a connection of its own."""
    with_body = body if body is None or isinstance(body, bytes) else body.encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, with_body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def ask(port, question):
    status, _, text = call(port, "POST", "/predict", json.dumps(question))
    return status, json.loads(text)


@contextmanager
def running(pool, batching=None, limits=None, folder=None):
    """The port of a service in a thread, which ends with the context."""
    batching, limits = batching or servers.Batching(), limits or Limits()
    server = servers.server_of(pool, "127.0.0.1", batching, limits, folder)
    with servers.bound("127.0.0.1", 0) as place:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            wait_for(lambda: server.started, thread.is_alive)
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the service did not stop"


@contextmanager
def started(*flags):
    """(process, port) of `hypelora serve` on a free port; killed if it still runs."""
    command = process.start("serve", "--port=0", *flags)
    try:
        said = []
        while "serving" not in (line := command.stderr.readline()):
            said.append(line)
            assert line, "".join(said)
        yield command, int(line.split(" (")[0].rsplit(":", 1)[1])
    finally:
        command.kill()
        command.wait()
        command.stdout.close()
        command.stderr.close()


def wait_for(done, alive, seconds=60):
    limit = time.monotonic() + seconds
    while not done():
        assert alive() and time.monotonic() < limit
        time.sleep(0.01)
