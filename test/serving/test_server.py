"""A real server, real clients, over the loopback."""

import contextlib
import dataclasses
import json
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vipra_ros.cli import main
from vipra_ros.config import ConfigError
from vipra_ros.policy.engine import open_engine
from vipra_ros.policy.observation import NoAnswer, ObservationError, Prediction
from vipra_ros.policy.pictures import from_jpeg, to_jpeg
from vipra_ros.serving.contract import Contract, read_token
from vipra_ros.serving.remote import RemoteEngine, Server
from vipra_ros.serving.server import Access
from vipra_ros.serving.wire import decode, encode

TOKEN = "0123456789abcdef" * 2


def promising(engine, **changes):
    """The engine's contract, but."""
    return dataclasses.replace(Contract.of(engine.checkpoint), **changes)


class Slow:
    """The real engine, behind a gate: an answer takes as long as the test says."""

    def __init__(self, engine):
        self.engine, self.checkpoint, self.seconds = engine, engine.checkpoint, 0.0

    def infer(self, observation, seed=None):
        time.sleep(self.seconds)
        return self.engine.infer(observation, seed)


def test_a_remote_engine_equals_the_one_in_process_bit_for_bit(serving, engine, observation):
    with serving(engine) as (server, uri):
        remote = RemoteEngine(Server(uri))
        remote.warm_up()
        for seed in (0, 1, 2**40):
            mine, theirs = engine.infer(observation, seed), remote.infer(observation, seed)
            assert np.array_equal(mine.actions, theirs.actions) and theirs.seed == seed
        assert {"resize", "encode", "denormalise", "overhead", "total"} <= set(theirs.timing)
        assert 0 < theirs.timing["overhead"] < theirs.timing["total"]
        assert remote.checkpoint.hash == engine.checkpoint.hash
        c, mine = remote.checkpoint.config, engine.checkpoint.config
        for name in ("rate", "horizon", "execute_steps", "action_space", "joint_names", "cameras", "frame_stride"):
            assert getattr(c, name) == getattr(mine, name)


def test_words_the_policy_does_not_know_come_back_with_the_answer(serving, engine, observation):
    with serving(engine) as (_, uri):
        remote = RemoteEngine(Server(uri))
        remote.warm_up()  # in words of its own
        assert remote.infer(observation, 0).unknown_words == ()
        asked = dataclasses.replace(observation, instruction="paint the red mug.")
        assert remote.infer(asked, 0).unknown_words == engine.infer(asked, 0).unknown_words == ("paint", "mug")


def test_a_page_in_a_browser_is_not_answered(serving, engine):
    with serving(engine, http_port=0) as (server, uri):
        with pytest.raises(InvalidStatus, match="403"):
            connect(uri, origin="http://somewhere.example").__enter__()
        url = f"http://{server.access.host}:{server.http_port}/reset"
        body = b'{"task_description": "go"}'
        asked = urllib.request.Request(url, body, {"Origin": "http://somewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(asked, timeout=5)
        assert urllib.request.urlopen(urllib.request.Request(url, body), timeout=5).status == 200


def test_a_server_that_says_nothing_is_left():
    """Its places would run out: every attempt that failed would keep one."""
    from websockets.sync.server import serve

    open_ones = []

    def silent(connection):
        open_ones.append(connection)
        with contextlib.suppress(ConnectionClosed):
            connection.recv()
        open_ones.remove(connection)

    with serve(silent, "127.0.0.22", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        uri = f"ws://127.0.0.22:{server.socket.getsockname()[1]}"
        for _ in range(3):
            with pytest.raises(NoAnswer, match="no policy server"):
                RemoteEngine(Server(uri, deadline=0.3))
        end = time.monotonic() + 5.0
        while open_ones and time.monotonic() < end:
            time.sleep(0.05)
        assert not open_ones
        server.shutdown()


def test_jpeg_on_the_wire_is_the_engine_on_those_jpegs(serving, engine, observation):
    with serving(engine) as (_, uri):
        remote = RemoteEngine(Server(uri, jpeg=90))
        small = [cv2.resize(f[:, 8:56], (32, 32), interpolation=cv2.INTER_AREA) for f in observation.frames["front"]]
        seen = np.stack([from_jpeg(to_jpeg(p, 90)) for p in small])
        same = engine.infer(type(observation)(1.0, {"front": seen}, observation.instruction), 3)
        assert np.array_equal(remote.infer(observation, 3).actions, same.actions)


def test_an_openpi_client_connects_and_infers(serving, engine, observation):
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    with serving(engine, token=TOKEN) as (server, uri):
        theirs = client.WebsocketClientPolicy(uri, api_key=TOKEN)
        metadata = theirs.get_server_metadata()
        assert metadata["horizon"] == 14 and metadata["hash"] == engine.checkpoint.hash
        answer = theirs.infer({"observation/front": observation.frames["front"], "prompt": "go", "seed": 5})
        mine = engine.infer(type(observation)(1.0, observation.frames, "go"), 5)
        assert np.array_equal(answer["actions"], mine.actions)
        assert answer["server_timing"]["infer_ms"] > 0 and answer["policy_timing"]["encode"] > 0
        with pytest.raises(RuntimeError, match="observation/front is missing"):
            theirs.infer({"prompt": "go"})
        again = theirs.infer({"observation/front": observation.frames["front"], "prompt": "go"})
        assert again["actions"].shape == (14, 8)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"observation/front": np.zeros((1, 8, 8, 3), np.uint8)}, r"expected uint8 \(2, H, W, 3\)"),
        ({"observation/front": np.zeros((2, 8, 8, 3), np.float32)}, "float32"),
        ({"observation/front": np.zeros((2, 0, 8, 3), np.uint8)}, "expected uint8"),
        ({"observation/front": [b"no", b"image"]}, "are no image"),
        ({"observation/front": [b"one"]}, "1 images; expected 2"),
        ({"prompt": 3}, "expected the instruction in words"),
        ({"seed": -1}, "seed = -1"),
        ({"observation/state": np.zeros((1, 1, 8))}, "expected an array of numbers"),
    ],
)
def test_a_wrong_observation_is_named_and_the_connection_lives(serving, engine, observation, change, said):
    good = {"observation/front": observation.frames["front"], "prompt": "go"}
    with serving(engine) as (_, uri), connect(uri, max_size=None) as wire:
        wire.recv()
        wire.send(encode({**good, **change}))
        text = wire.recv()
        assert isinstance(text, str) and "\n" not in text
        assert re.search(said, text), text
        wire.send(b"\xc1 nonsense")
        assert "WireError: no message" in wire.recv()
        wire.send("words")
        assert "MessagePack" in wire.recv()
        wire.send(encode({**good, "id": 7}))
        answer = decode(wire.recv())
        assert answer["id"] == 7 and answer["actions"].shape == (14, 8)


def test_a_picture_that_unpacks_to_gigabytes_is_refused_by_its_header(serving, engine):
    bomb = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    jpeg = bytearray(to_jpeg(np.zeros((8, 8, 3), np.uint8), 90))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    with serving(engine) as (_, uri), connect(uri) as wire:
        wire.recv()
        for data in (bytes(bomb), bytes(jpeg)):
            wire.send(encode({"observation/front": [data, data], "prompt": "go"}))
            assert "resize before sending" in wire.recv()


def test_more_than_the_limit_closes_the_connection(serving, engine):
    with serving(engine, most_bytes=1 << 16) as (_, uri), connect(uri) as wire:
        wire.recv()
        with pytest.raises(ConnectionClosed):
            wire.send(b"x" * (1 << 17))
            wire.recv()
        assert wire.close_code == 1009
        with connect(uri) as other:  # the server lives
            assert decode(other.recv())["vipra_ros"] == 1


def test_health_and_token(serving, engine, observation):
    with serving(engine, token=TOKEN) as (server, uri):
        web = uri.replace("ws://", "http://")
        with urllib.request.urlopen(f"{web}/healthz", timeout=5) as answer:
            assert json.load(answer)["status"] == "ok"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(web, timeout=5)
        for wrong in ("", TOKEN[:-1], TOKEN + "0"):
            with pytest.raises(ConfigError, match="refuses us .401.; give its token in token_file"):
                RemoteEngine(Server(uri, token=wrong))
        RemoteEngine(Server(uri, token=TOKEN)).infer(observation)
        assert server.answered == 1


def test_who_serves_the_network_needs_a_token(tmp_path):
    for host in ("0.0.0.0", "::", "10.1.2.3", "robot.local"):
        with pytest.raises(ConfigError, match="give --token-file FILE"):
            Access(host=host)
    assert Access(host="0.0.0.0", token=TOKEN) and Access(host="127.9.9.9") and Access(host="::1")
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(tmp_path / "short")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_tls_by_option(serving, engine, observation, tmp_path):
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x".split()
    command += ["-keyout", key, "-out", cert, "-addext", "subjectAltName=IP:127.0.0.22"]
    subprocess.run(command, check=True, capture_output=True)
    with serving(engine, certificate=cert, key=key) as (_, uri):
        assert uri.startswith("wss://")
        assert RemoteEngine(Server(uri, ca=cert)).infer(observation, 1).actions.shape == (14, 8)
        with pytest.raises(ConfigError, match="name the certificate in server_ca"):
            RemoteEngine(Server(uri))


def test_a_late_answer_is_dropped_and_the_next_one_is_right(serving, engine, observation):
    slow = Slow(engine)
    with serving(slow) as (_, uri):
        remote = RemoteEngine(Server(uri, deadline=1.0))
        remote.infer(observation, 1)
        slow.seconds = 2.0
        with pytest.raises(NoAnswer, match="no answer within 1 s"):
            remote.infer(observation, 1)
        slow.seconds = 0.0
        time.sleep(1.5)  # the late answer is out by now
        assert np.array_equal(remote.infer(observation, 2).actions, engine.infer(observation, 2).actions)


def test_an_error_in_the_policy_is_no_end(serving, engine, observation):
    """Out of memory once: the next request may be a better one, and the robot's policy lives on."""
    class Once(Slow):
        failed = False

        def infer(self, observation, seed=None):
            if not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory")
            return super().infer(observation, seed)

    with serving(Once(engine)) as (_, uri):
        remote = RemoteEngine(Server(uri))
        with pytest.raises(NoAnswer, match="RuntimeError in the policy: CUDA out of memory"):
            remote.infer(observation, 1)
        assert np.array_equal(remote.infer(observation, 2).actions, engine.infer(observation, 2).actions)


def test_an_instruction_without_end_is_asked_to_be_shorter(serving, engine, observation):
    long = dataclasses.replace(observation, instruction="!" * 60_000)
    with pytest.raises(NoAnswer, match="tokens, 128 at most; say it in fewer words"):
        engine.infer(long, 1)
    with serving(engine) as (_, uri):
        remote = RemoteEngine(Server(uri))
        with pytest.raises(NoAnswer, match="128 at most"):
            remote.infer(long, 1)
        assert remote.infer(observation, 2).actions.shape == (14, 8)


def test_a_peer_that_takes_no_bytes_costs_the_deadline_with_tls_too(engine, observation, tmp_path):
    """A robot whose network is gone: a send under TLS has no end of its own."""
    from websockets.sync.server import serve

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x".split()
    command += ["-keyout", str(key), "-out", str(cert), "-addext", "subjectAltName=IP:127.0.0.22"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    done = threading.Event()

    def deaf(connection):
        connection.send(encode(Contract.of(engine.checkpoint).message()))
        done.wait(20.0)  # takes what its buffers hold

    with serve(deaf, "127.0.0.22", 0, ssl=context, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = RemoteEngine(Server(f"wss://127.0.0.22:{server.socket.getsockname()[1]}", ca=str(cert), deadline=1.0))
        remote._warm = True
        large = {name: np.zeros((2, 2000, 2000, 3), np.uint8) for name in observation.frames}
        remote._contract = dataclasses.replace(remote._contract, image_size=None)
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            remote.infer(dataclasses.replace(observation, frames=large), 1)
        assert time.monotonic() - began < 4.0
        done.set()
        server.shutdown()


def test_close_ends_a_call_under_way(serving, engine, observation):
    slow = Slow(engine)
    with serving(slow) as (_, uri):
        remote = RemoteEngine(Server(uri, deadline=5.0))
        slow.seconds = 1.0
        threading.Timer(0.1, remote.close).start()
        began = time.monotonic()
        with pytest.raises(NoAnswer, match="ending"):
            remote.infer(observation)
        assert time.monotonic() - began < 0.4


def test_death_and_return_of_the_server(serving, engine, observation):
    with serving(engine) as (server, uri):
        remote, port = RemoteEngine(Server(uri)), server.port
        remote.infer(observation)
    with pytest.raises(NoAnswer, match="connecting again|no policy server"):
        remote.infer(observation)
    with pytest.raises(NoAnswer, match="no policy server at .* start vipra serve there"):
        remote.infer(observation)
    with serving(engine, port=port):
        assert np.array_equal(remote.infer(observation, 4).actions, engine.infer(observation, 4).actions)
    with serving(engine, promising(engine, rate=10.0), port=port):
        with pytest.raises(NoAnswer):
            remote.infer(observation)
        with pytest.raises(ConfigError, match="another policy than before"):
            remote.infer(observation)


def test_an_answer_of_another_shape_than_agreed_is_an_error(serving, engine, observation):
    with serving(engine, promising(engine, horizon=10)) as (_, uri):
        with pytest.raises(ObservationError, match=r"actions is \(14, 8\); expected \(10, 8\)"):
            RemoteEngine(Server(uri)).infer(observation)


def test_values_that_are_not_finite_do_not_pass(serving, engine, observation):
    class Broken(Slow):
        def infer(self, observation, seed=None):
            return Prediction(np.full((14, 8), np.nan))

    with serving(Broken(engine)) as (_, uri):
        with pytest.raises(ObservationError, match="not finite"):
            RemoteEngine(Server(uri)).infer(observation)


# --- the command ---------------------------------------------------------------------------------------------------


def start(checkpoint, *words):
    """`vipra serve` as a process, and the line it says when it is ready."""
    command = [sys.executable, "-m", "vipra_ros.cli", "serve", str(checkpoint), "--host", "127.0.0.22", "--port", "0"]
    process = subprocess.Popen([*command, "--threads", "1", *words], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


@pytest.mark.parametrize("kind", ["static", "fused"])
def test_another_engine_is_served_one_observation_at_a_time(kind, micro_checkpoint, observation):
    pytest.importorskip("onnxruntime")
    ours = open_engine(micro_checkpoint, kind, "cpu", 1, euler_steps=3)
    process, line = start(micro_checkpoint, "--engine", kind, "--device", "cpu", "--euler-steps", "3")
    try:
        assert f"{kind} on cpu" in line
        remotes = [RemoteEngine(Server(re.search(r"ws://\S+", line)[0], deadline=20.0)) for _ in range(2)]
        with ThreadPoolExecutor(2) as both:
            found = list(both.map(lambda pair: pair[1].infer(observation, seed=pair[0]), enumerate(remotes)))
        for seed, (remote, prediction) in enumerate(zip(remotes, found)):
            assert np.allclose(prediction.actions, ours.infer(observation, seed=seed).actions, atol=1e-6)
            remote.close()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    "words, said",
    [
        ("--engine static --batch 4", "--batch 4 with --engine static, which takes one observation at a time"),
        ("--device gpu", "device = 'gpu': write auto"),
        ("--device cuda:99", "device = 'cuda:99'"),
        ("--batch 0", "at least 1 observation"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_port_opens(words, said, micro_checkpoint, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(micro_checkpoint), "--port", "0", *words.split()])
    assert ended.value.code not in (None, 0) and said in capsys.readouterr().err
