"""One JSON question to a web endpoint at a time: paced, retried, bounded; never a key in sight."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from stillroom.records import BadInputError
from stillroom.teachers.http_cutoff import Cutoff

logger = logging.getLogger(__name__)

#: The only place where a key is looked for.
KEY_VARIABLE = "STILLROOM_API_KEY"
#: Answers that another try may mend: too early, too many, or the server's own trouble.
PASSING = frozenset({408, 409, 425, 429})
#: Characters of an endpoint's own words that an error repeats.
QUOTED = 200


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How hard an endpoint is tried."""

    # Seconds for one try, from the first byte sent to the last one read.
    timeout_s: float = 60.0
    # Tries after the first.
    retries: int = 5
    # Seconds before the first retry; doubled each time, and scattered by half.
    backoff_s: float = 1.0
    # No wait is longer; an endpoint that asks for more is given up.
    longest_wait_s: float = 120.0
    # Requests begun per minute at most; None: no limit.
    requests_per_minute: float | None = None
    # Longest reply that is read.
    max_reply_bytes: int = 4_000_000

    def __post_init__(self) -> None:
        for name in ("timeout_s", "backoff_s", "longest_wait_s", "max_reply_bytes"):
            if not getattr(self, name) > 0:
                raise BadInputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.retries < 0:
            raise BadInputError(f"retries must not be negative, got {self.retries}")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise BadInputError(
                f"requests_per_minute must be positive, got {self.requests_per_minute}"
            )


class Refused(BadInputError):
    """The endpoint took the request and said no (a 4xx); ``status`` is what it said."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Passing(Exception):
    """Worth another try, after ``wait_s`` if the endpoint named one."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class JsonEndpoint:
    """A web address that takes and gives JSON.

    Raises:
        BadInputError: no http(s) address, one that holds a key, a key that no header can carry, or
            no HTTP library.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = checked_url(url), patience
        self._key = checked_key(os.environ.get(KEY_VARIABLE, ""))
        self._library = _library()
        limits = self._library.Timeout(patience.timeout_s)
        self._client = self._library.Client(timeout=limits, follow_redirects=False)
        self._cutoff = Cutoff()
        self._next_start = 0.0
        # Scattered waits must differ between processes: no seed.
        self._rng = random.SystemRandom()

    def post(self, body: Mapping[str, Any]) -> Any:
        """The reply to ``body``, parsed.

        Raises:
            BadInputError: still no good reply after all tries, or one that more tries cannot mend.
        """
        for attempt in range(self.patience.retries + 1):
            self._wait_turn()
            try:
                return self._once(body)
            except _Passing as trouble:
                wait = self._pause(attempt, trouble)
                logger.info("%s: %s; next try in %.1f s", self.url, trouble, wait)
                time.sleep(wait)
        raise AssertionError("the last pause raises")

    def _pause(self, attempt: int, trouble: _Passing) -> float:
        """Seconds until the next try. Raises BadInputError where there is none."""
        patience = self.patience
        if attempt == patience.retries:
            raise BadInputError(
                f"{self.url} failed {attempt + 1} times, the last time because {trouble}; what is "
                "labelled stays, the same command goes on from there"
            )
        if trouble.wait_s is not None:
            if trouble.wait_s > patience.longest_wait_s:
                raise BadInputError(
                    f"{self.url} asks to wait {trouble.wait_s:.0f} s because {trouble}; what is "
                    "labelled stays, run the same command again then"
                )
            return trouble.wait_s
        scattered = patience.backoff_s * 2**attempt * self._rng.uniform(0.5, 1.5)
        return min(scattered, patience.longest_wait_s)

    def _wait_turn(self) -> None:
        """Keep to the requests per minute."""
        if self.patience.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60.0 / self.patience.requests_per_minute
        time.sleep(start - now)

    def _once(self, body: Mapping[str, Any]) -> Any:
        library, allowed = self._library, self.patience.timeout_s
        late = _Passing(f"it did not answer within {allowed:g} s")
        try:
            with self._cutoff.within(allowed) as is_late:
                status, headers, content = self._exchange(body)
        except library.TimeoutException:
            raise late from None
        except library.LocalProtocolError as error:
            raise BadInputError(
                f"the request to {self.url} cannot be sent ({self._short(str(error))})"
            ) from None
        except library.TransportError as error:
            if is_late():
                raise late from None
            raise _Passing(f"the connection failed ({self._short(str(error))})") from None
        if status in PASSING or status >= 500:
            raise _Passing(f"it answered {status}", _retry_after(headers.get("retry-after")))
        if status >= 300:
            raise Refused(self._refusal(status, headers, content), status)
        try:
            return json.loads(content)
        except ValueError:
            raise BadInputError(
                f"{self.url} answered {_kind(headers)} instead of JSON; check the address (it "
                "usually ends in /v1)"
            ) from None

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of one try, bounded in bytes."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        more: dict[str, Any] = {"headers": headers, "extensions": {"trace": self._cutoff.trace}}
        content = bytearray()
        with self._client.stream("POST", self.url, json=body, **more) as reply:
            for piece in reply.iter_bytes():
                content += piece
                if len(content) > self.patience.max_reply_bytes:
                    raise BadInputError(
                        f"{self.url} answered more than {self.patience.max_reply_bytes} bytes, "
                        "which is no answer to a question"
                    )
        return reply.status_code, reply.headers, bytes(content)

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> str:
        if status in (401, 403):
            return f"{self.url} refuses access ({status}); put its key into {KEY_VARIABLE}"
        if status < 400:
            where = self._short(headers.get("location", "elsewhere"))
            return f"{self.url} redirects to {where} ({status}); name that address instead"
        said = self._short(_words(content))
        hint = "; check address and model" if status == 404 else ""
        return f"{self.url} refuses the request ({status}): {said}{hint}"

    def _short(self, text: str) -> str:
        """One line of at most ``QUOTED`` characters, without the key should someone repeat it."""
        text = " ".join(text.split())
        if self._key:
            # As it is, and as Python's and JSON's quotes would write it.
            for form in (self._key, repr(self._key)[1:-1], json.dumps(self._key)[1:-1]):
                text = text.replace(form, "***")
        return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def checked_key(key: str) -> str:
    """``key`` without the blanks and line ends that come with pasting; "" for none.

    Raises:
        BadInputError: what is left cannot stand in a header; the key is not repeated.
    """
    key = key.strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise BadInputError(
            f"the key in {KEY_VARIABLE} holds blanks, line ends or letters beyond ASCII, which no "
            "request can carry; copy it again"
        )
    return key


def checked_url(url: str) -> str:
    """``url`` if it is plain and whole.

    Raises:
        BadInputError: no http(s) address, or one with a name, password or query in it, which
            would be stored with the labels.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadInputError(f"{url!r} is no web address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise BadInputError(
            f"{url!r} is no web address; expected https://HOST/v1 (as a name: http:https://HOST/v1#MODEL)"
        )
    if parts.username or parts.password or parts.query:
        raise BadInputError(
            f"the address of {host} holds a name, password or query, which would be stored with "
            f"the labels; a key belongs into {KEY_VARIABLE}"
        )
    return url


def _library() -> Any:
    """httpx, or its successor of the same interface that the hub's client brings along."""
    for name in ("httpx", "httpx2"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise BadInputError("remote teachers need httpx: pip install 'stillroom[remote]'")


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None if it says neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().isdecimal() else _until(value)
    except ValueError:
        return None


def _until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _kind(headers: Mapping[str, str]) -> str:
    kind = headers.get("content-type", "").partition(";")[0].strip()
    return {"text/html": "a web page"}.get(kind, kind or "something")


def _words(content: bytes) -> str:
    """What an error reply says: its message, or its text."""
    text = content.decode("utf-8", errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return text
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        error = error.get("message", error)
    return error if isinstance(error, str) else json.dumps(error)
