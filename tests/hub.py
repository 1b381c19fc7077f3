"""A hub on this machine: the parts of Hugging Face's HTTP interface that a model needs.

`faults` maps a file's name to what its download does: "cut" sends half of it and closes
the connection.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/model"


@contextmanager
def serve(folder: Path, faults: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a hub with the one model `folder`, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            del args

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
                return self.file(path.rpartition("/")[2], body)
            found = {
                f"/api/models/{NAME}/revision/main": {"id": NAME, "sha": COMMIT},
                f"/api/models/{NAME}/tree/{COMMIT}": [
                    {"type": "file", "path": p.name, "size": len(d), "oid": oid(d)}
                    for p in sorted(folder.iterdir())
                    for d in [p.read_bytes()]
                ],
            }
            self.send(404 if path not in found else 200, json.dumps(found.get(path)))

        def send(self, status, text):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def file(self, name, body):
            data = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{oid(data)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and faults.get(name) == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def point_to(monkeypatch, address: str, cache: Path) -> None:
    """Make huggingface_hub, which read its environment at import, use this hub."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    path = template[template.index("/{repo_id}") :]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
