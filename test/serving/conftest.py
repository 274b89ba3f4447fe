"""A policy server in a thread, on an address of the loopback of its own; an engine and an observation."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest
import torch

from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation
from vipra_ros.serving.contract import Contract
from vipra_ros.serving.server import Access, PolicyServer

HOST = "127.0.0.22"


@contextlib.contextmanager
def _serving(engine, contract=None, **access):
    """(server, uri) until the end of the block."""
    access = {"host": HOST, "port": 0, **access}
    server = PolicyServer(engine, contract or Contract.of(engine.checkpoint), Access(**access))
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.run(ready.set)), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield server, f"{'wss' if server.access.certificate else 'ws'}://{server.access.host}:{server.port}"
    finally:
        server.stop()
        thread.join(timeout=5)
        assert not thread.is_alive()


@pytest.fixture
def serving():
    """Called with an engine, a contract and who may connect, it gives a context of (server, uri)."""
    return _serving


@pytest.fixture(scope="session")
def engine(micro_checkpoint):
    torch.set_num_threads(1)
    return load_engine(Checkpoint.load(micro_checkpoint), threads=1)


@pytest.fixture
def observation():
    frames = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), np.uint8)
    return Observation(1.0, {"front": frames}, "reach above the red cube")
