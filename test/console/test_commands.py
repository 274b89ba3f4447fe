"""Commands over real HTTP: what is refused, and what comes through."""

import http.client
import json
import socket
import threading
import time

import pytest

from vipra_ros.config import ConfigError
from vipra_ros.console.access import HEADER, Access
from vipra_ros.console.commands import CommandServer
from vipra_ros.console.deadman import DeadMan


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


@pytest.fixture
def console():
    access = Access("127.0.0.1", 1, free_port())
    done, slow = [], threading.Event()

    def act(name, text):
        if name == "recover":
            slow.wait(5.0)
        done.append((name, text))
        return name != "arm", f"{name} {text}".strip()

    with CommandServer(access, act, DeadMan()) as server:
        server.done, server.slow = done, slow
        yield server
        slow.set()


def post(server, path, body=b"{}", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.access.commands, timeout=5.0)
    given = {HEADER: server.access.session} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body),
                       {k: v for k, v in given.items() if v is not None})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}, answer


def test_commands_come_through_and_refusals_are_told(console):
    assert post(console, "/command", {"name": "instruction", "text": "lift the réd cube"})[:2] == (
        200, {"done": True, "message": "instruction lift the réd cube"})
    status, told, _ = post(console, "/command", {"name": "arm"})
    assert status == 409 and not told["done"]
    assert console.done == [("instruction", "lift the réd cube"), ("arm", "")]


@pytest.mark.parametrize("path", ["/stop", "/command", "/deadman"])
@pytest.mark.parametrize("headers, status", [
    ({HEADER.replace("-", "_"): None}, 401),
    ({HEADER.replace("-", "_"): "wrong"}, 401),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Host": "evil.example"}, 403),
])
def test_refused_without_the_secret_or_from_elsewhere(console, path, headers, status):
    assert post(console, path, {"name": "arm"}, **headers)[0] == status
    assert console.done == []


def test_only_post_acts(console):
    for method in ("GET", "PUT", "HEAD", "DELETE"):
        connection = http.client.HTTPConnection("127.0.0.1", console.access.commands, timeout=5.0)
        connection.request(method, "/stop", headers={HEADER: console.access.session})
        assert connection.getresponse().status == 501
        connection.close()
    assert console.done == []


def test_a_browser_may_ask_for_our_page_only(console):
    for origin, allowed in (("http://127.0.0.1:1", True), ("http://evil.example", False)):
        connection = http.client.HTTPConnection("127.0.0.1", console.access.commands, timeout=5.0)
        connection.request("OPTIONS", "/stop", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        answer = connection.getresponse()
        assert (answer.status == 204) == allowed
        assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == allowed
        connection.close()


def test_stop_passes_a_command_that_hangs(console):
    hanging = threading.Thread(target=post, args=(console, "/command", {"name": "recover"}), daemon=True)
    hanging.start()
    time.sleep(0.05)
    began = time.monotonic()
    assert post(console, "/stop")[0] == 200
    assert time.monotonic() - began < 1.0 and console.done == [("stop", "")]
    console.slow.set()
    hanging.join(5.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b'{"name": 3}', b"[" * 4000, b"x" * 5000])
def test_garbage_is_refused_and_stop_needs_no_body(console, body):
    status, _, _ = post(console, "/command", body)
    assert status in (400, 409) or body == b""
    assert [name for name, _ in console.done if name] == []
    assert post(console, "/stop", body)[0] == 200


def test_holding_over_http_and_stop_releases(console):
    _, told, _ = post(console, "/deadman", {"do": "press"})
    status, told, _ = post(console, "/deadman", {"do": "renew", "holder": told["holder"], "ticket": told["ticket"]})
    assert status == 200 and console.deadman.held
    assert post(console, "/deadman", {"do": "press"})[0] == 409
    post(console, "/stop")
    assert not console.deadman.held
    assert post(console, "/deadman", {"do": "renew", "holder": told["holder"], "ticket": told["ticket"]})[0] == 409
    assert post(console, "/deadman", {"do": "renew", "holder": "x", "ticket": []})[0] == 409


def test_a_taken_port_is_said(console):
    says = rf"^another program, perhaps another console, uses port 1 or {console.access.commands} .*--port"
    with pytest.raises(ConfigError, match=says):
        CommandServer(console.access, console.act, DeadMan())
