"""The chat endpoint against a server of our own on the loopback address."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from mllm_align.data.mine.chat import ChatEndpoint, EndpointError
from mllm_align.data.mine.speaking import Ask

Reply = tuple[int, dict[str, str], Any]


class Server:
    """Answers as `reply` says; keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: (200, {}, completion(said(body).upper()))
        self.most = self.running = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body)
                    server.headers.append(self.headers)
                    server.paths.append(self.path)
                    server.running += 1
                    server.most = max(server.most, server.running)
                status, headers, content = server.reply(body)
                with server.lock:
                    server.running -= 1
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def endpoint(server: Server, **changes: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "tiny", **({"first_wait": 0.01} | changes))


def test_answers_come_in_the_order_of_the_asks(server: Server) -> None:
    def slow_first(body: dict[str, Any]) -> Reply:
        time.sleep(0.1 if said(body) == "ask 0" else 0)
        return 200, {}, completion(said(body).upper())

    server.reply = slow_first
    assert endpoint(server)([Ask(f"ask {number}") for number in range(6)], 7) == [f"ASK {n}" for n in range(6)]
    assert server.paths == ["/v1/chat/completions"] * 6
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in server.requests} == {("tiny", 7, 0)}
    assert endpoint(server)([], 7) == []


def test_as_many_at_a_time_as_there_are_threads(server: Server) -> None:
    def slow(body: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return 200, {}, completion("x")

    server.reply = slow
    endpoint(server, num_threads=3)([Ask("a")] * 9, 1)
    assert 2 <= server.most <= 3


def test_system_start_and_pictures(server: Server) -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    server.reply = lambda body: (200, {}, completion("It is red, I think."))
    assert endpoint(server)([Ask("Which?", (picture,), "Be brief.", "It is ")], 5) == ["red, I think."]
    (body,) = server.requests
    system, user, start = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][1] == {"type": "text", "text": "Which?"}
    sent = user["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(sent))).tobytes() == picture.tobytes()
    assert start == {"role": "assistant", "content": "It is "}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False


def test_the_key_is_sent_and_is_no_part_of_the_identity(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sesame")
    speaker = endpoint(server, key_env="A_KEY")
    speaker([Ask("a")], 1)
    assert server.headers[0]["Authorization"] == "Bearer sesame"
    assert "sesame" not in speaker.identity
    assert server.url in speaker.identity
    monkeypatch.delenv("A_KEY")
    with pytest.raises(EndpointError, match="A_KEY, which is not set"):
        endpoint(server, key_env="A_KEY")


def test_a_server_that_is_busy_is_asked_again(server: Server) -> None:
    def busy_twice(body: dict[str, Any]) -> Reply:
        return (503, {}, b"busy") if len(server.requests) < 3 else (200, {}, completion("at last"))

    server.reply = busy_twice
    assert endpoint(server)([Ask("a")], 1) == ["at last"]
    assert len(server.requests) == 3


def test_a_server_that_says_how_long_to_wait_is_obeyed(server: Server) -> None:
    server.reply = lambda body: (
        (429, {"Retry-After": "1"}, b"slow down") if len(server.requests) < 2 else (200, {}, completion("done"))
    )
    start = time.monotonic()
    assert endpoint(server)([Ask("a")], 1) == ["done"]
    assert time.monotonic() - start >= 1


def test_a_server_that_stays_busy_is_given_up(server: Server) -> None:
    server.reply = lambda body: (500, {}, b"out of memory")
    with pytest.raises(EndpointError, match="status 500: out of memory"):
        endpoint(server, num_retries=2)([Ask("a")], 1)
    assert len(server.requests) == 3


def test_a_refusal_is_not_asked_again(server: Server) -> None:
    server.reply = lambda body: (404, {}, b"no model tiny")
    with pytest.raises(EndpointError, match="status 404: no model tiny"):
        endpoint(server)([Ask("a")], 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [b"<html>", {"choices": []}, [], {"choices": [{"message": None}]}])
def test_what_is_no_chat_completion_is_refused(server: Server, content: Any) -> None:
    server.reply = lambda body: (200, {}, content)
    with pytest.raises(EndpointError, match="no chat completion"):
        endpoint(server)([Ask("a")], 1)


def test_an_answer_of_nothing_is_empty(server: Server) -> None:
    server.reply = lambda body: (200, {}, completion(None))
    assert endpoint(server)([Ask("a")], 1) == [""]


def test_where_nothing_listens_the_error_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=r"nothing answers at .*is the server running"):
        ChatEndpoint(url, "tiny", num_retries=1, first_wait=0.01)([Ask("a")], 1)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc/hosts", ""])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(EndpointError, match="no address"):
        ChatEndpoint(url, "tiny")


def test_a_time_out_is_an_answer_that_does_not_come(server: Server) -> None:
    def never(body: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return 200, {}, completion("late")

    server.reply = never
    with pytest.raises(EndpointError, match="timed out"):
        endpoint(server, timeout=0.1, num_retries=0)([Ask("a")], 1)
