"""A client of OpenAI-compatible chat endpoints: one question, one answer, and patience with servers."""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvr_jax.errors import UserError
from medvr_jax.inputs.images import image_header, load_image

_AGAIN = frozenset({408, 409, 425, 429})  # and all of 500 and above: the same request may succeed later
_OF_ALL = frozenset({401, 403, 404, 405})  # no request will ever succeed
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_ASKED = 0.5, 60.0, 600.0  # seconds; the last one is for what a server asks for
_LONGEST_ANSWER = 1 << 26  # bytes
_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


class Reply(NamedTuple):
    """What a model answered, and whether it was cut off at the longest answer allowed."""

    text: str
    cut: bool


class NoReply(Exception):
    """A question that was not answered; the message says why, in one line."""


class _Later(Exception):
    """A request that may succeed later: why, and after how many seconds if the server says so."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A redirected POST would lose its body: it becomes an HTTPError."""
        return None


class ChatClient:
    """Asks the model `model` of the endpoint at `url`; used by many threads at once."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        field: str,
        key: str,
        timeout: float,
        retries: int,
        stopping: threading.Event,
    ) -> None:
        """
        Args:
            url: base URL; "/chat/completions" follows it.
            field: the configuration's field that names the endpoint, for messages.
            key: API key; none is sent where it is empty.
            timeout: seconds for one request.
            retries: of a request that may succeed later.
            stopping: no request is made, and no wait goes on, once this is set.
        """
        self._url, self._model, self._field = url.rstrip("/") + "/chat/completions", model, field
        self._key, self._timeout, self._retries = key, timeout, retries
        self._stopping = stopping
        self._limit = "max_tokens"  # what the endpoint calls the longest answer
        here = urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = urllib.request.ProxyHandler({} if here else None)  # None: those of the environment
        self._opener = urllib.request.build_opener(_NoRedirect, proxies)

    def ask(self, messages: Sequence[Mapping[str, Any]], *, temperature: float, max_tokens: int) -> Reply:
        """The model's reply.

        Raises:
            NoReply: this question is refused, or every attempt failed.
            UserError: no question will be answered (wrong key, no such model, …).
        """
        for attempt in range(self._retries + 1):
            try:
                return self._once({"model": self._model, "messages": list(messages), "temperature": temperature,
                                   self._limit: max_tokens})  # fmt: skip
            except _Later as error:
                why, after = str(error), error.after
            if attempt < self._retries:
                self._wait(attempt, after)
        raise NoReply(f"{why}, {self._retries + 1} attempts")

    def _wait(self, attempt: int, asked: float | None) -> None:
        """Twice as long each time, or as long as the server asks; never quite the same, so that threads spread out."""
        seconds = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.75, 1.25)
        if self._stopping.wait(max(seconds, min(asked or 0.0, _LONGEST_ASKED))):
            raise NoReply("stopped")

    def _once(self, question: Mapping[str, Any]) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(question).encode(), headers)
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _reply(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, question) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
                raise UserError(f"{self._field}: {self._url}: {error}") from error
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            raise _Later(
                f"no answer in {self._timeout:g} s" if late else f"{type(reason).__name__}: {reason}"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError, question: Mapping[str, Any]) -> Exception:
        """What an HTTP status other than success comes to."""
        try:
            text = error.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        if self._key:
            text = text.replace(self._key, "…")
        why = f"HTTP {error.code} {error.reason}: {' '.join(text.split())[:300]}".rstrip(": ")
        if error.code in _AGAIN or error.code >= 500:
            return _Later(why, _asked_to_wait(error.headers.get("Retry-After")))
        if error.code == 400 and "max_completion_tokens" in text and "max_tokens" in question:
            self._limit = "max_completion_tokens"  # newer models know no other name
            return _Later(why, 0.0)
        if error.code in _OF_ALL or 300 <= error.code < 400:
            return UserError(f"{self._field}: {self._url} refuses model {self._model!r} ({why})")
        return NoReply(why)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, unless that takes too long: the socket's own limit holds for each piece of it alone."""
    pieces, size = [], 0
    while piece := response.read1(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _LONGEST_ANSWER:
            raise _Later(f"an answer of more than {_LONGEST_ANSWER} bytes")
    if response.length:  # fewer bytes came than were announced
        raise _Later("the answer broke off")
    return b"".join(pieces)


def _reply(body: bytes) -> Reply:
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):  # some servers answer in parts
            content = "".join(part.get("text", "") for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Later(f"an answer that is no chat completion: {body[:100]!r}") from error
    return Reply(content or "", choice.get("finish_reason") == "length")


def _asked_to_wait(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date."""
    if not text:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def user_message(text: str, urls: Sequence[str] = ()) -> dict[str, Any]:
    """A user's turn: the images at these URLs, then the text."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}


def data_url(source: bytes | str | Path, name: str | None = None) -> str:
    """An image file as it is, or as PNG where it is of a format that few servers read. `name` is for errors."""
    name = name or ("image bytes" if isinstance(source, bytes) else str(source))
    kind = _AS_IT_IS.get(image_header(source, name).format)
    if kind is None:
        buffer = io.BytesIO()
        load_image(source, name).save(buffer, "PNG")
        kind, source = "image/png", buffer.getvalue()
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
