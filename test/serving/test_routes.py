"""The HTTP routes of ViPRA's public server, asked as its client asks: JSON lists, and a form of JPEG files."""

import contextlib
import http.client
import json
import socket
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.policy.observation import ObservationError
from vipra_ros.policy.pictures import from_jpeg, to_jpeg
from vipra_ros.serving import routes
from vipra_ros.serving.contract import Contract
from vipra_ros.serving.wire import WireError

TOKEN = "0123456789abcdef" * 2
WORDS = "reach above the red cube"


@contextlib.contextmanager
def asking(server):
    """ask(path, body, type, **headers) -> (status, answer), over one connection."""
    connection = http.client.HTTPConnection(server.access.host, server.http_port, timeout=20)

    def ask(path, body=b"", kind="application/json", method="POST", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": kind, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    try:
        yield ask
    finally:
        connection.close()


def form(**parts):
    """(body, content type) of a form with files, as `requests` writes it."""
    lines = [
        b'--x9\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in parts.items()
    ]
    return b"".join(lines) + b"--x9--\r\n", "multipart/form-data; boundary=x9"


def test_step_step_bytes_and_reset(serving, engine, observation):
    small = [cv2.resize(f[:, 8:56], (32, 32), interpolation=cv2.INTER_AREA) for f in observation.frames["front"]]
    mine = engine.infer(type(observation)(1.0, {"front": np.stack(small)}, WORDS), 3).actions
    jpegs = [to_jpeg(p, 95) for p in small]
    seen = np.stack([from_jpeg(j) for j in jpegs])
    with serving(engine, http_port=0) as (server, _), asking(server) as ask:
        lists = [p.tolist() for p in small]
        status, answer = ask("/step", {"image": lists, "task_description": WORDS, "seed": 3})
        assert status == 200 and np.allclose(answer["raw_actions"], mine, atol=1e-12)
        assert answer["server_timing"]["infer_ms"] > 0 and answer["policy_timing"]["encode"] > 0
        status, answer = ask("/step", {"image": lists})
        assert status == 400 and "task_description" in answer["detail"]
        assert ask("/reset", {"task_description": WORDS}) == (200, {"status": "success", **{
            "message": "the instruction for this address is set"}})
        status, answer = ask("/step_bytes", *form(image0=jpegs[0], image1=jpegs[1], seed=b"3"))
        same = engine.infer(type(observation)(1.0, {"front": seen}, WORDS), 3).actions
        assert status == 200 and np.allclose(answer["raw_actions"], same, atol=1e-12)
        status, answer = ask("/step_bytes", *form(image0=jpegs[0], image1=jpegs[1], task_description=b"push it"))
        assert status == 200 and server.answered == 3


@pytest.mark.parametrize("path, body, kind, status, said", [
    ("/step", b"{", "application/json", 400, "no JSON"),
    ("/step", b"[" * 100_000, "application/json", 400, "no JSON"),
    ("/step", b"[]" * (1 << 19) + b"[]", "application/json", 400, "lists in one body"),
    ("/step", {"image": [[[[0, 0, 0]]]], "task_description": "go"}, "", 400, "expected 2 images"),
    ("/step", {"image": [[[[0, 0, 256]]]] * 2, "task_description": "go"}, "", 400, "beyond 0 .. 255"),
    ("/step", {"image": [[[[0, 0, 0.5]]]] * 2, "task_description": "go"}, "", 400, "whole numbers"),
    ("/step", {"image": [[[[0, 0]], [[0, 0, 0]]]] * 2, "task_description": "go"}, "", 400, "lists of the same length"),
    ("/step", {"image": [[[[0, 0, 0]]]] * 2, "task_description": 3}, "", 400, "in words"),
    ("/step", {"image": [[[[0, 0, 0]]]] * 2, "task_description": "go", "seed": -1}, "", 400, "seed = -1"),
    ("/step", {"image": [[[[0, 0, 0]]]] * 2, "task_description": "go", "proprio": [["x"]]}, "", 400, "proprio"),
    ("/step", {"image": [[[[0, 0, 0]]]] * 2, "task_description": "go", "proprio": ["x" * 10**6] + [""] * 10**4}, "",
     400, "proprio: expected numbers"),
    ("/step_bytes", b"image0", "application/octet-stream", 400, "multipart/form-data"),
    ("/step_bytes", *form(image0=b"no", image1=b"image", task_description=b"go"), 400, "are no image"),
    ("/step_bytes", *form(image0=b"one", task_description=b"go"), 400, "image1 is missing"),
    ("/step_bytes", form(image0=b"one")[0][:-6], "multipart/form-data; boundary=x9", 400, "without its end"),
    ("/reset", {"task_description": ""}, "", 400, "in words"),
    ("/other", {}, "", 404, "there are /reset, /step, /step_bytes"),
])  # fmt: skip
def test_what_is_wrong_is_named_and_the_server_lives(served, path, body, kind, status, said):
    with asking(served) as ask:
        found = ask(path, body, kind or "application/json")
        assert found[0] == status and said in found[1]["detail"], found
        assert "\n" not in found[1]["detail"]
    with asking(served) as ask:
        assert ask("/healthz", method="GET")[1]["status"] == "ok"


@pytest.fixture(scope="module")
def served(engine):
    from .conftest import _serving

    with _serving(engine, http_port=0) as (server, _):
        yield server


def test_who_hangs_up_makes_place_and_is_not_computed_for(serving, engine):
    asked, free = [], threading.Event()

    class Slow:
        checkpoint, batches = engine.checkpoint, False

        def infer(self, observation, seed=None):
            asked.append(observation)
            free.wait(10.0)
            return engine.infer(observation, seed)

    picture = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    body, kind = form(image0=picture, image1=picture, task_description=WORDS.encode())
    head = f"POST /step_bytes HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(Slow(), http_port=0) as (server, _):
        for _ in range(5):
            with socket.create_connection((server.access.host, server.http_port)) as client:
                client.sendall(head.encode() + body)
                time.sleep(0.2)
        end = time.monotonic() + 5.0
        while server.health()["connections"] and time.monotonic() < end:
            time.sleep(0.05)
        assert server.health()["connections"] == 0
        free.set()
    assert len(asked) == 1  # the first was under way


def test_token_and_size_are_looked_at_before_the_body(serving, engine):
    with serving(engine, http_port=0, token=TOKEN, most_bytes=1 << 16) as (server, _):
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": TOKEN}):
            with asking(server) as ask:
                assert ask("/reset", {"task_description": "go"}, **wrong)[0] == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        with asking(server) as ask:
            assert ask("/reset", {"task_description": "go"}, **right)[0] == 200
        for head, status in (
            (f"Authorization: Bearer {TOKEN}\r\nContent-Length: 65537", 413),
            (f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked", 411),
            (f"Authorization: Bearer {TOKEN}\r\nContent-Length: 1\r\nContent-Length: 2", 400),
            ("Content-Length: 9999999", 401),
        ):
            with socket.create_connection((server.access.host, server.http_port), timeout=10) as wire:
                wire.sendall(f"POST /step HTTP/1.1\r\n{head}\r\n\r\n".encode())  # and no body
                said = b""
                while more := wire.recv(4096):
                    said += more
            assert said.startswith(f"HTTP/1.1 {status} ".encode()), said


def test_there_are_no_routes_unless_asked_for(serving, engine):
    with serving(engine) as (server, _):
        assert server.http_port is None


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_spoilt_bodies_are_requests_or_errors(data, at):
    contract = Contract(15.0, 14, 7, "joint_position", tuple("abcdefg"), ("front",), 32)
    jpeg = to_jpeg(np.zeros((8, 8, 3), np.uint8), 90)
    body, kind = form(image0=jpeg, image1=jpeg, task_description=b"go", proprio=b"\0" * 32)
    for read in (
        lambda: routes.read_step(routes.read_json(data), contract, "go"),
        lambda: routes.read_step_bytes(routes.read_form(body[:at] + data + body[at:], kind), contract, None),
    ):
        try:
            assert read().observation.frames["front"].dtype == np.uint8
        except (WireError, ObservationError) as error:
            assert "\n" not in str(error)
