"""A remote teacher against real local servers, most of which misbehave."""

import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillroom.records import Answerer, BadInputError, Teacher
from stillroom.scenes.store import open_store
from stillroom.teachers.http import HttpOptions, HttpTeacher, split_address
from stillroom.teachers.http_client import KEY_VARIABLE, JsonEndpoint, Patience
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_check import status
from stillroom.teachers.label_store import open_labels
from stillroom.testing import tiny_questions, tiny_scene, tiny_store

QUICK = Patience(timeout_s=5.0, retries=2, backoff_s=0.01)
OPTIONS = HttpOptions(patience=QUICK)


@dataclass
class Reply:
    """What a server says once."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    # Seconds before the first byte, and between single bytes.
    late_s: float = 0.0
    drip_s: float = 0.0
    # Seconds between single bytes of a header.
    header_drip_s: float = 0.0
    # Break off half-way.
    torn: bool = False


@dataclass
class Server:
    """A running endpoint: what it was asked, and when."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    """A server that gives ``answer(number of the request, its body)``."""
    server = Server(url="")
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append({"path": self.path, **body})
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            reply = answer(len(server.asked) - 1, body)
            stop.wait(reply.late_s)
            # A client that has given up is gone.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.header_drip_s:
                self.flush_headers()
                for letter in b"X-Slow: " + b"a" * 10_000:
                    self.wfile.write(bytes([letter]))
                    if stop.wait(reply.header_drip_s):
                        return
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if reply.torn:
                self.wfile.write(reply.body[: len(reply.body) // 2])
            elif reply.drip_s:
                for number in range(len(reply.body)):
                    self.wfile.write(reply.body[number : number + 1])
                    self.wfile.flush()
                    if stop.wait(reply.drip_s):
                        return
            else:
                self.wfile.write(reply.body)

        def log_message(self, *given: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{running.server_port}/v1"
    try:
        yield server
    finally:
        stop.set()
        running.shutdown()
        running.server_close()
        thread.join()


def said(text: Any, **more: Any) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text, "refusal": more.pop("refusal", None)}
    choice = {"message": message, **more}
    body = json.dumps({"choices": [choice]}).encode()
    return Reply(body=body, headers={"Content-Type": "application/json"})


def teacher_at(server: Server, options: HttpOptions = OPTIONS) -> HttpTeacher:
    return HttpTeacher(f"{server.url}#tiny", options)


def ask(server: Server, options: HttpOptions = OPTIONS, **signals: Any) -> Any:
    scene = tiny_scene(1)
    wanted = signals.get("signals", ["answers"])
    return teacher_at(server, options).label(scene, tiny_questions(scene)[:1], wanted)[0]


# Good endpoints. --------------------------------------------------------------------------------


def test_it_sends_the_photos_and_the_question_and_keeps_the_answer() -> None:
    scene = tiny_scene(1, views=3)
    questions = tiny_questions(scene)
    with serving(lambda number, body: said(f" answer {number} ")) as server:
        labels = teacher_at(server, replace(OPTIONS, views=2)).label(scene, questions, ["answers"])
    assert [label.answer for label in labels] == [f"answer {n}" for n in range(4)]
    assert [label.question_id for label in labels] == [q.question_id for q in questions]
    assert labels[0].answer_ids is None
    first = server.asked[0]
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("tiny", 0, 64)
    *photos, text = first["messages"][0]["content"]
    assert text["text"].startswith(questions[0].question)
    assert len(photos) == 2
    for photo, number in zip(photos, (0, 1), strict=True):
        head, _, data = photo["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)
        # JPEG keeps noise badly, but well enough to tell whose it is.
        apart = [abs(seen - view.rgb).mean() for view in scene.views]
        assert int(np.argmin(apart)) == number
    assert "Authorization" not in server.headers[0]


def test_it_is_an_answerer_and_a_teacher() -> None:
    scene = tiny_scene(1)
    with serving(lambda number, body: said("left")) as server:
        teacher = teacher_at(server)
        answers = teacher.open(scene).answer(tiny_questions(scene))
    assert isinstance(teacher, Answerer)
    assert isinstance(teacher, Teacher)
    assert [answer.text for answer in answers] == ["left"] * 4


@pytest.mark.parametrize(
    ("content", "more", "text"),
    [
        ([{"type": "text", "text": "the "}, {"type": "text", "text": "lamp"}], {}, "the lamp"),
        (None, {"refusal": "I cannot see that."}, "I cannot see that."),
        ("", {}, ""),
    ],
)
def test_other_shapes_of_an_answer_are_read(content: Any, more: Any, text: str) -> None:
    with serving(lambda number, body: said(content, **more)) as server:
        assert ask(server).answer == text


@pytest.mark.parametrize(
    ("content", "finish", "sentence"),
    [
        ("", "length", r"used up all tokens .*; raise --options\.max-new-tokens"),
        (None, "length", r"used up all tokens .*; raise --options\.max-new-tokens"),
        (None, "content_filter", r"filters its answer to question \w+; leave that question out"),
        ("", "content_filter", "filters its answer to question"),
        (None, "stop", "with a message without content"),
    ],
)
def test_an_answer_that_never_came_is_refused(content: Any, finish: str, sentence: str) -> None:
    with (
        serving(lambda number, body: said(content, finish_reason=finish)) as server,
        pytest.raises(BadInputError, match=sentence),
    ):
        ask(server)
    bare = Reply(body=b'{"choices": [{"message": {}}]}')
    with (
        serving(lambda number, body: bare) as server,
        pytest.raises(BadInputError, match="with a message without content"),
    ):
        ask(server)


def test_cut_and_empty_answers_are_counted_in_one_line_a_scene(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        text = "" if number == 2 else "the red"
        return said(text, finish_reason="length" if number in (0, 5) else "stop")

    caplog.set_level(logging.WARNING)
    with serving(answer) as server:
        teacher = teacher_at(server)
        for number in range(3):
            scene = tiny_scene(number)
            teacher.label(scene, tiny_questions(scene), ["answers"])
    first, second = (record.getMessage() for record in caplog.records)
    cut = "cut at 64 tokens (--options.max-new-tokens)"
    assert f"of 4 answers 1 were {cut} and 1 are empty; so far 1 and 1 of 4" in first
    assert f"of 4 answers 1 were {cut} and 0 are empty; so far 2 and 1 of 8" in second


def test_the_log_probability_is_the_sum_over_the_answer_where_it_is_told() -> None:
    told = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
    with serving(lambda number, body: said("ab", logprobs=told)) as server:
        assert ask(server).logprob == pytest.approx(-0.75)
    assert server.asked[0]["logprobs"] is True
    with serving(lambda number, body: said("ab", logprobs=None)) as server:
        assert ask(server).logprob is None


def test_an_endpoint_that_refuses_logprobs_is_asked_without_from_then_on() -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if "logprobs" in body:
            return Reply(status=400, body=b'{"error": {"message": "no logprobs here"}}')
        return said("yes")

    scene = tiny_scene(1)
    with serving(answer) as server:
        labels = teacher_at(server).label(scene, tiny_questions(scene), ["answers"])
    assert [label.answer for label in labels] == ["yes"] * 4
    assert ["logprobs" in body for body in server.asked] == [True, *[False] * 4]


def test_top_logprobs_by_token_id_become_logits() -> None:
    def entry(chosen: int, others: dict[int, float]) -> dict[str, Any]:
        best = [{"token": f"token_id:{k}", "logprob": v} for k, v in others.items()]
        return {
            "token": f"token_id:{chosen}",
            "logprob": others[chosen],
            "top_logprobs": best,
        }

    # The second position has one more: the token that was said was not among the best.
    content = [entry(7, {7: -0.1, 9: -2.5}), entry(2, {5: -4.0, 2: -0.2, 6: -3.0})]
    with serving(lambda number, body: said("lamp", logprobs={"content": content})) as server:
        label = ask(server, replace(OPTIONS, topk=2), signals=["topk_logits"])
    assert server.asked[0]["top_logprobs"] == 2
    assert server.asked[0]["return_tokens_as_token_ids"] is True
    assert label.answer_ids.tolist() == [7, 2]
    assert label.topk_ids.tolist() == [[7, 9], [2, 6]]
    np.testing.assert_allclose(label.topk_logits, [[-0.1, -2.5], [-0.2, -3.0]])
    assert label.logsumexp.tolist() == [0.0, 0.0]
    assert label.logprob == pytest.approx(-0.3)


def test_top_logprobs_by_text_are_refused_as_logits() -> None:
    entry = {
        "token": "lamp",
        "logprob": -0.1,
        "top_logprobs": [{"token": "lamp", "logprob": -0.1}],
    }
    with (
        serving(lambda number, body: said("lamp", logprobs={"content": [entry]})) as server,
        pytest.raises(BadInputError, match="names tokens by their text"),
    ):
        ask(server, signals=["topk_logits"])
    with (
        serving(lambda number, body: said("lamp")) as server,
        pytest.raises(BadInputError, match="tells no top logprobs"),
    ):
        ask(server, signals=["topk_logits"])


def test_there_are_as_many_top_logprobs_as_were_asked_for() -> None:
    best = [{"token": f"token_id:{n}", "logprob": -float(n)} for n in range(1, 4)]
    token = {"token": "token_id:1", "logprob": -1.0}
    content = [token | {"top_logprobs": best}, token | {"top_logprobs": best[:2]}]
    with serving(lambda number, body: said("lamp", logprobs={"content": content})) as server:
        for topk in (1, 2):
            label = ask(server, replace(OPTIONS, topk=topk), signals=["topk_logits"])
            assert label.topk_ids.shape == (2, topk)
        with pytest.raises(
            BadInputError, match=r"2 top logprobs .* 3 were asked for; choose --options\.topk 2"
        ):
            ask(server, replace(OPTIONS, topk=3), signals=["topk_logits"])


@pytest.mark.parametrize(
    "broken",
    [
        {"token": "token_id:2"},
        {"token": "token_id:2", "logprob": None},
        {"token": "token_id:2", "logprob": "-1.5"},
        {"token": "token_id:2", "logprob": True},
        {"token": "token_id:2", "logprob": float("nan")},
        "token_id:2",
        None,
    ],
)
def test_a_top_logprob_that_is_no_number_is_refused(broken: Any) -> None:
    best = [{"token": "token_id:1", "logprob": -0.5}, broken]
    content = [{"token": "token_id:1", "logprob": -0.5, "top_logprobs": best}]
    with (
        serving(lambda number, body: said("lamp", logprobs={"content": content})) as server,
        pytest.raises(BadInputError, match="of which one is no number; label with --signals ans"),
    ):
        ask(server, replace(OPTIONS, topk=2), signals=["topk_logits"])


def test_signals_that_no_endpoint_tells_are_refused_before_anything_is_sent() -> None:
    with (
        serving(lambda number, body: said("lamp")) as server,
        pytest.raises(BadInputError, match="does not tell last_hidden, attention"),
    ):
        ask(server, signals=["answers", "last_hidden", "attention"])
    assert server.asked == []


# The key. ---------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_shows_up_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv(KEY_VARIABLE, key)
    caplog.set_level(logging.DEBUG)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number == 0:
            return Reply(status=500)
        return Reply(status=418, body=f'{{"error": "the key {key} is a teapot"}}'.encode())

    with serving(answer) as server, pytest.raises(BadInputError, match="418") as error:
        ask(server)
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {key}"] * 2
    assert "the key *** is a teapot" in str(error.value)
    assert key not in caplog.text
    assert key not in json.dumps(OPTIONS.describe())


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_pasted_with_its_line_end_is_sent_without_it(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" sk-secret-123{end}")
    with serving(lambda number, body: said("yes")) as server:
        assert ask(server).answer == "yes"
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-123"


@pytest.mark.parametrize("key", ["sk-secret\n123", "sk-secret 123", "sk-secr\u00e9t-123"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(
    key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    caplog.set_level(logging.DEBUG)
    with (
        serving(lambda number, body: said("yes")) as server,
        pytest.raises(BadInputError, match=f"the key in {KEY_VARIABLE} holds blanks") as error,
    ):
        ask(server)
    assert "secr" not in str(error.value) + caplog.text
    assert server.asked == []


def test_a_key_is_hidden_in_every_form_that_an_endpoint_may_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = "sk-'back\\slash\"-123"
    monkeypatch.setenv(KEY_VARIABLE, key)
    body = json.dumps({"error": f"{key} and {key!r} and {json.dumps(key)} are teapots"})
    with (
        serving(lambda number, _: Reply(status=418, body=body.encode())) as server,
        pytest.raises(BadInputError, match="teapots") as error,
    ):
        ask(server)
    assert "slash" not in str(error.value)


def test_a_request_that_cannot_be_sent_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret-123")
    endpoint = JsonEndpoint("http://127.0.0.1:9/v1", QUICK)
    tries = []

    def broken(body: Any) -> Any:
        tries.append(body)
        raise endpoint._library.LocalProtocolError("Illegal header value b'Bearer sk-secret-123'")

    monkeypatch.setattr(endpoint, "_exchange", broken)
    with pytest.raises(BadInputError, match=r"cannot be sent .*Bearer \*\*\*'") as error:
        endpoint.post({})
    assert "secret" not in str(error.value)
    assert len(tries) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_without_a_key_the_sentence_says_where_to_put_it(status: int) -> None:
    with (
        serving(lambda number, body: Reply(status=status)) as server,
        pytest.raises(
            BadInputError, match=f"refuses access .{status}.; put its key into {KEY_VARIABLE}"
        ),
    ):
        ask(server)
    assert len(server.asked) == 1


# Bad endpoints. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
def test_passing_trouble_is_tried_again(status: int) -> None:
    with serving(
        lambda number, body: Reply(status=status) if number < 2 else said("yes")
    ) as server:
        assert ask(server).answer == "yes"
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_trouble_without_end_is_given_up_with_one_sentence(status: int) -> None:
    with (
        serving(lambda number, body: Reply(status=status, body=b"<html>sorry</html>")) as server,
        pytest.raises(BadInputError, match=f"failed 3 times, .* it answered {status}; what is lab"),
    ):
        ask(server)
    assert len(server.asked) == 3


def test_waits_double_and_are_scattered() -> None:
    endpoint = JsonEndpoint("http://127.0.0.1:9/v1", Patience(backoff_s=1.0, retries=9))
    from stillroom.teachers.http_client import _Passing

    waits = [[endpoint._pause(attempt, _Passing("x")) for _ in range(50)] for attempt in range(9)]
    for attempt, tries in enumerate(waits[:6]):
        assert 0.5 * 2**attempt <= min(tries) < max(tries) <= 1.5 * 2**attempt
    assert max(waits[8]) == 120.0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number:
            return said("yes")
        # A date has whole seconds, so that two ahead is at least one.
        until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return Reply(status=429, headers={"Retry-After": "1" if form == "seconds" else until})

    with serving(answer) as server:
        assert ask(server).answer == "yes"
    assert server.times[1] - server.times[0] >= 0.9


def test_an_endpoint_that_asks_to_wait_too_long_is_given_up_at_once() -> None:
    reply = Reply(status=429, headers={"Retry-After": "3600"})
    with (
        serving(lambda number, body: reply) as server,
        pytest.raises(BadInputError, match="asks to wait 3600 s because it answered 429"),
    ):
        ask(server)
    assert len(server.asked) == 1


def test_a_retry_after_that_is_nonsense_is_ignored() -> None:
    reply = Reply(status=503, headers={"Retry-After": "soon"})
    with serving(lambda number, body: said("yes") if number else reply) as server:
        assert ask(server).answer == "yes"


def test_an_endpoint_that_hangs_is_given_up() -> None:
    options = replace(OPTIONS, patience=replace(QUICK, timeout_s=0.3, retries=1))
    with (
        serving(lambda number, body: Reply(late_s=30.0)) as server,
        pytest.raises(BadInputError, match=r"failed 2 times, .* did not answer within 0\.3 s"),
    ):
        ask(server, options)
    assert len(server.asked) == 2


def test_an_answer_that_drips_is_given_up() -> None:
    options = replace(OPTIONS, patience=replace(QUICK, timeout_s=0.4, retries=0))
    reply = replace(said("yes" * 200), drip_s=0.05)
    with (
        serving(lambda number, body: reply) as server,
        pytest.raises(BadInputError, match=r"did not answer within 0\.4 s"),
    ):
        ask(server, options)


def test_headers_that_drip_are_given_up() -> None:
    options = replace(OPTIONS, patience=replace(QUICK, timeout_s=0.4, retries=1))
    with serving(lambda number, body: replace(said("yes"), header_drip_s=0.05)) as server:
        begun = time.monotonic()
        with pytest.raises(BadInputError, match=r"failed 2 times, .* did not answer within 0\.4 s"):
            ask(server, options)
        assert time.monotonic() - begun < 5.0
    assert len(server.asked) == 2


def test_a_tls_greeting_that_drips_is_given_up() -> None:
    stop = threading.Event()

    def greet(listening: socket.socket) -> None:
        caller, _ = listening.accept()
        # A handshake record of 4096 bytes, of which one comes now and then.
        with caller, suppress(OSError):
            caller.sendall(b"\x16\x03\x03\x10\x00")
            while not stop.wait(0.05):
                caller.sendall(b"\x02")

    patience = replace(QUICK, timeout_s=0.4, retries=0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=greet, args=(listening,))
        thread.start()
        endpoint = JsonEndpoint(f"https://127.0.0.1:{listening.getsockname()[1]}/v1", patience)
        begun = time.monotonic()
        try:
            with pytest.raises(BadInputError, match=r"did not answer within 0\.4 s"):
                endpoint.post({})
            assert time.monotonic() - begun < 5.0
        finally:
            stop.set()
            thread.join()


def test_what_comes_in_time_after_a_late_reply_is_taken() -> None:
    options = replace(OPTIONS, patience=replace(QUICK, timeout_s=0.4))
    with serving(
        lambda number, body: replace(said("yes"), header_drip_s=0.0 if number else 0.05)
    ) as server:
        assert ask(server, options).answer == "yes"
    assert len(server.asked) == 2


def test_a_connection_that_breaks_is_tried_again() -> None:
    with serving(
        lambda number, body: replace(said("yes"), torn=True) if number == 0 else said("yes")
    ) as server:
        assert ask(server).answer == "yes"
    assert len(server.asked) == 2


def test_nobody_there_is_one_sentence() -> None:
    with serving(lambda number, body: said("yes")) as server:
        pass
    with pytest.raises(BadInputError, match=r"failed 3 times, .* the connection failed"):
        ask(server)


def test_an_oversized_answer_is_not_read_to_its_end() -> None:
    options = replace(OPTIONS, patience=replace(QUICK, max_reply_bytes=10_000))
    with (
        serving(lambda number, body: said("x" * 1_000_000)) as server,
        pytest.raises(BadInputError, match="answered more than 10000 bytes"),
    ):
        ask(server, options)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (
            Reply(body=b"<html>hi</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
            "answered a web page instead of JSON",
        ),
        (Reply(body=b'{"choices": [{"mess'), "answered something instead of JSON"),
        (Reply(body=b"\xff\xfe\x00"), "instead of JSON"),
        (Reply(body=b"[]"), "no chat completion"),
        (Reply(body=b"{}"), "no chat completion"),
        (Reply(body=b'{"choices": []}'), "no chat completion"),
        (Reply(body=b'{"choices": [{"text": "old"}]}'), "no chat completion"),
        (Reply(body=b'{"choices": {"a": 1}}'), "no chat completion"),
        (said(7), "content is no text"),
        (
            Reply(status=404, body=b'{"error": {"message": "no model tiny"}}'),
            "no model tiny; check",
        ),
        (Reply(status=413, body=b"too large"), "413.: too large"),
        (
            Reply(status=301, headers={"Location": "https://new.example/v1"}),
            "redirects to https://new",
        ),
    ],
)
def test_what_another_try_cannot_mend_is_refused_at_once(reply: Reply, sentence: str) -> None:
    with (
        serving(lambda number, body: reply) as server,
        pytest.raises(BadInputError, match=sentence),
    ):
        ask(server)
    assert len(server.asked) == 1


def test_a_long_refusal_is_cut_to_one_line() -> None:
    reply = Reply(status=413, body=b"too\nmany\n" + b"words " * 500)
    with serving(lambda number, body: reply) as server, pytest.raises(BadInputError) as error:
        ask(server)
    assert len(str(error.value)) < 350
    assert "\n" not in str(error.value)


def test_requests_keep_to_their_rate() -> None:
    scene = tiny_scene(1)
    options = replace(OPTIONS, patience=replace(QUICK, requests_per_minute=240.0))
    with serving(lambda number, body: said("yes")) as server:
        teacher_at(server, options).label(scene, tiny_questions(scene), ["answers"])
    gaps = np.diff(server.times)
    assert len(gaps) == 3
    # A request may arrive late, but on the whole they are 0.25 s apart.
    assert server.times[-1] - server.times[0] > 0.7


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("https://host/v1", "name the endpoint's model behind a #: http:https://host/v1#MODEL"),
        ("host/v1#m", "no web address"),
        ("ftp://host/v1#m", "no web address"),
        ("https://#m", "no web address"),
        ("https://host:port/v1#m", "no web address"),
        ("https://me:secret@host/v1#m", "holds a name, password or query"),
        ("https://host/v1?api-key=secret#m", "holds a name, password or query"),
    ],
)
def test_an_address_that_is_not_plain_is_refused(where: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence) as error:
        HttpTeacher(where)
    assert "secret" not in str(error.value)


def test_addresses_are_taken_with_and_without_their_end() -> None:
    for where in ("http://h:8/v1#m/x", "http://h:8/v1/#m/x", "http://h:8/v1/chat/completions#m/x"):
        assert split_address(where) == ("http://h:8/v1", "m/x")


@pytest.mark.parametrize(
    "changes",
    [{"timeout_s": 0.0}, {"retries": -1}, {"requests_per_minute": 0.0}, {"backoff_s": -1.0}],
)
def test_patience_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="must"):
        Patience(**changes)


def test_without_an_http_library_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("stillroom.teachers.http_client.import_module", missing)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[remote\]'"):
        HttpTeacher("http://host/v1#m")


def test_what_is_labelled_stays_when_an_endpoint_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One shard for all: what is durable lies in its parts, none of which is a finished shard.
    monkeypatch.setattr("stillroom.teachers.label.SHARDS", 1)
    scenes = tiny_store(tmp_path / "scenes", scenes=4)
    out = tmp_path / "labels"

    def run(answer: Callable[[int, dict[str, Any]], Reply]) -> int:
        with serving(answer) as server:
            return label_scenes(
                scenes,
                lambda: teacher_at(server),
                out,
                teacher={"name": "http", "revision": "tiny"},
                signals=("answers",),
                scenes_per_part=1,
            )

    with pytest.raises(BadInputError, match="it answered 500"):
        run(lambda number, body: said("one") if number < 10 else Reply(status=500))
    # Two scenes of four questions each were whole.
    found = status(out)
    assert (found["rows"], found["scenes"], found["shards"]) == (8, 2, 0)
    with pytest.raises(BadInputError, match="the same 'stillroom label' command finishes"):
        open_labels(out)
    assert run(lambda number, body: said("two")) == 2
    answers = open_labels(out).answers()
    assert len(answers) == len(open_store(scenes).questions())
    assert sorted(answers.values()) == ["one"] * 8 + ["two"] * 8
