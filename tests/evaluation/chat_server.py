"""An OpenAI-compatible server on loopback that behaves as badly as a test asks it to."""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from medvr_jax.datasets.example import Example


class Action(NamedTuple):
    """What the server does with a request.

    kind: "answer", "status" (an HTTP error), "stall" (nothing for `seconds`, then the connection ends), "disconnect"
    (at once), "half" (half of an answer), "garbage" (no JSON), "drip" (an answer that never ends, byte by byte).
    """

    kind: str = "answer"
    status: int = 500
    seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    text: str = "no reason"


class Request(NamedTuple):
    """What was asked: the question's key, how often it had been asked before, the JSON and the headers."""

    key: str
    attempt: int
    body: dict[str, Any]
    headers: dict[str, str]


class ChatServer:
    """`url`, and what it saw: `requests` in order, `answered` by question, `most` requests at the same time."""

    def __init__(self, behave: Callable[[Request], Action], reply: Callable[[Request], str]) -> None:
        self.requests: list[Request] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.order: list[str] = []
        self.most = self._busy = 0
        self.stopping = threading.Event()
        attempts: collections.Counter[str] = collections.Counter()
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = key_of(body)
                with lock:
                    request = Request(key, attempts[key], body, dict(self.headers))
                    attempts[key] += 1
                    server.requests.append(request)
                    server._busy += 1
                    server.most = max(server.most, server._busy)
                try:
                    self._act(behave(request), request)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with lock:
                        server._busy -= 1

            def _act(self, action: Action, request: Request) -> None:
                self.close_connection = True
                if action.kind == "stall":
                    with server._uncounted(lock):
                        server.stopping.wait(action.seconds)
                    return
                time.sleep(action.seconds)
                if action.kind == "disconnect":
                    return
                if action.kind == "status":
                    self._send(action.status, action.text.encode(), action.headers)
                    return
                choice = {"message": {"role": "assistant", "content": reply(request)}, "finish_reason": "stop"}
                whole = json.dumps({"choices": [choice]}).encode()
                if action.kind == "garbage":
                    self._send(200, b"<html>busy</html>")
                elif action.kind == "half":
                    self._send(200, whole[: len(whole) // 2], length=len(whole))
                elif action.kind == "drip":
                    with server._uncounted(lock):
                        self._send(200, b"", length=10**6)
                        while not server.stopping.wait(0.05):
                            self.wfile.write(b" ")
                else:
                    with lock:
                        server.answered[request.key] += 1
                        server.order.append(request.key)
                    self._send(200, whole)

            def _send(
                self, status: int, content: bytes, headers: tuple[tuple[str, str], ...] = (), length: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def _uncounted(self, lock: threading.Lock) -> Iterator[None]:
        """A request that the client may have given up is none that is under way."""
        with lock:
            self._busy -= 1
        try:
            yield
        finally:
            with lock:
                self._busy += 1

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(
    reply: Callable[[Request], str], behave: Callable[[Request], Action] = lambda request: Action()
) -> Iterator[ChatServer]:
    server = ChatServer(behave, reply)
    try:
        yield server
    finally:
        server.close()


def key_of(body: dict[str, Any]) -> str:
    """A question is known by its images, or by its text where it has none."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return " ".join(hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest() for url in images)


def key_of_example(example: Example) -> str:
    """The key under which an example with images as bytes arrives."""
    return " ".join(hashlib.sha256(image).hexdigest() for image in example.images)
