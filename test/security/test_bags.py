"""Bags of strangers: every one is read, or refused with a BagError, also by repair and view."""

import json
import shutil
import sqlite3
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.bags import BagError, EpisodeReader
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.repair import repair
from vipra_ros.data.salvage import Salvage
from vipra_ros.data.unpack import MOST_CHUNK, unlz4, unzstd
from vipra_ros.view.sources import look

from .conftest import examples, faults, spoil, watched
from .test_messages import ours

NAMES = load_profile("fr3").joint_names


def messages_of_an_episode():
    begin = 10**18
    for k in range(12):
        now = begin + k * NS // 10
        yield "joint_states", messages.JOINT_STATE, messages.joint_state(now, NAMES, np.arange(7.0)), now
        yield "camera/front/image_raw/compressed", messages.COMPRESSED_IMAGE, messages.compressed_image(
            now, "front", b"\xff\xd8\xff" + bytes(40)), now
    yield "policy/instruction", messages.STRING, messages.string("push"), begin
    yield "executor/gripper_command", messages.FLOAT32, messages.float32(1.0), begin
    yield "policy/chunk", messages.ACTION_CHUNK, ours(messages.ACTION_CHUNK), begin
    yield "executor/status", messages.EXECUTOR_STATUS, ours(messages.EXECUTOR_STATUS), begin


@pytest.fixture(scope="module", params=["plain", "zstd", "sqlite"])
def bag(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("bags")
    if request.param != "sqlite":
        writer = EpisodeWriter(root, "one", compress=request.param == "zstd", sync=False)
        for row in messages_of_an_episode():
            writer.write(*row)
        return writer.close({"instruction": "push", "robot": "fr3"})
    with Writer(root / "one", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        channels = {}
        for topic, kind, raw, now in messages_of_an_episode():
            if topic not in channels:
                channels[topic] = writer.add_connection(f"/{topic}", kind, typestore=messages.typestore())
            writer.write(channels[topic], now, raw)
    return root / "one"


def read(path):
    """All that can be known of a bag."""
    with EpisodeReader(path) as reader:
        assert isinstance(reader.meta(), dict) and isinstance(reader.start_ns + reader.duration, float)
        for topic, kind, stamp, raw in reader.messages():
            assert isinstance(topic, str) and isinstance(kind, str) and isinstance(stamp, int)
            assert isinstance(raw, bytes)


def use(bag, folder, edit, repaired=False):
    """A copy of `bag` that went through `edit`; then read, looked at and repaired."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bag, folder / bag.name)
    edit(folder / bag.name)
    with watched(BagError, MessageError):
        read(folder / bag.name)
    with watched(BagError, MessageError, ConfigError):
        for _ in look(folder / bag.name).pictures():
            pass
    if repaired:
        with watched():
            assert all(one.text for one in repair(folder))


def storage(folder):
    return next(p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))


@examples(16)
@given(data=st.data())
def test_a_spoilt_bag(bag, tmp_path, data):
    def edit(folder):
        file = storage(folder)
        file.write_bytes(spoil(file.read_bytes(), data.draw(faults)))

    use(bag, tmp_path / "spoilt", edit, repaired=data.draw(st.integers(0, 3)) == 0)


@examples(8)
@given(data=st.data())
def test_spoilt_metadata(bag, tmp_path, data):
    def edit(folder):
        file = folder / "metadata.yaml"
        text = spoil(file.read_bytes(), data.draw(faults))
        for word in (b"nanoseconds: 1", b"name: /", b"mcap", b"message_count: ", b"custom_data:"):
            if data.draw(st.integers(0, 9)) == 0:
                text = text.replace(word, data.draw(st.sampled_from((b"[]", b"name: 3", b"x: {}", b"2001-99-99"))))
        file.write_bytes(text)

    use(bag, tmp_path / "spoilt", edit)


@examples(20)
@given(content=st.binary(max_size=300))
def test_any_bytes_after_the_first_of_an_mcap_file(tmp_path, content):
    file = tmp_path / "any.mcap"
    file.write_bytes(b"\x89MCAP0\r\n" + content)
    with watched(BagError):
        read(file)
    with watched():
        assert all(isinstance(raw, bytes) for _, _, raw in Salvage(file).messages())


def test_a_database_that_computes_is_refused(tmp_path):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, 'x' AS topic_type FROM n"
    for extra in (f"CREATE VIEW message_definitions AS {endless}",
                  "CREATE TABLE schema(schema_version INTEGER, big AS (zeroblob(1000000000)))"):
        file = tmp_path / "bad.db3"
        file.unlink(missing_ok=True)
        with sqlite3.connect(file) as db:
            db.executescript("CREATE TABLE topics(id, name, type, serialization_format, offered_qos_profiles);"
                             f"CREATE TABLE messages(id, topic_id, timestamp, data); {extra}")
        db.close()
        with pytest.raises(BagError, match="is no plain table"):
            EpisodeReader(file)


@pytest.mark.parametrize("row", [(b"joint_states", "x/msg/Y", 1, b"1"), ("/a", None, 1, b"1"),
                                 ("/a", "x/msg/Y", "t", b"1"), ("/a", "x/msg/Y", 1, "text"),
                                 ("/a", "x/msg/Y", None, None)])
def test_a_database_with_other_types(tmp_path, row):
    name, kind, stamp, data = row
    file = tmp_path / "types.db3"
    with sqlite3.connect(file) as db:
        db.executescript("CREATE TABLE topics(id, name, type, serialization_format, offered_qos_profiles);"
                         "CREATE TABLE messages(id, topic_id, timestamp, data)")
        db.execute("INSERT INTO topics VALUES(1, ?, ?, 'cdr', '')", (name, kind))
        db.execute("INSERT INTO messages VALUES(1, 1, ?, ?)", (stamp, data))
    db.close()
    with pytest.raises(BagError):
        read(file)


def test_what_is_compressed_becomes_no_more_than_was_announced():
    import lz4.frame
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    much = bytes(32 << 20)
    assert unzstd(zstd.compress(much), len(much)) == much
    for pack, unpack in ((zstd.compress, unzstd), (lz4.frame.compress, unlz4)):
        small = pack(much)
        with watched(Exception), pytest.raises(Exception, match="more than the 1000 bytes"):
            unpack(small, 1000)
        assert unpack(pack(b"abc" * 1000), 3000) == b"abc" * 1000
    assert unzstd(zstd.compress(b"one") + zstd.compress(b"two")) == b"onetwo"


def test_a_chunk_that_announces_less_or_far_too_much(bag, tmp_path):
    if storage(bag).suffix != ".mcap":
        pytest.skip("chunks are MCAP's")

    def edit(size):
        def write(folder):
            file, data = storage(folder), bytearray(storage(bag).read_bytes())
            at = data.index(b"\x06", 8)  # the first chunk: kind, length, two stamps, uncompressed size
            while int.from_bytes(data[at + 1 : at + 9], "little") > len(data):
                at = data.index(b"\x06", at + 1)
            data[at + 25 : at + 33] = size.to_bytes(8, "little")
            file.write_bytes(data)
        return write

    for size in (10, MOST_CHUNK + 1, 1 << 62):
        use(bag, tmp_path / str(size), edit(size), repaired=True)


@pytest.mark.parametrize("text", ["a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]", "[" * 10**6, "- " * 500_000,
                                  "{a: " * 90_000, "{a: 1", "- 1", "x: !!timestamp y"])
def test_metadata_that_multiply_or_nest(bag, tmp_path, text):
    def edit(folder):
        (folder / "metadata.yaml").write_text(text)

    use(bag, tmp_path / "meta", edit)


@pytest.mark.parametrize("meta", ["[1]", "{", "1" * 5000, "[" * 100_000,
                                  '{"robot": 3, "kind": "incident", "fault_ns": "x"}',
                                  json.dumps({"instruction": ["a"]})])
def test_a_description_that_is_none(tmp_path, meta):
    writer = EpisodeWriter(tmp_path, "one", sync=False)
    for row in messages_of_an_episode():
        writer.write(*row)
    writer.write("episode/meta", messages.STRING, messages.string(meta), 10**18 + NS)
    writer.write("flight/change", messages.STRING, messages.string(meta), 10**18)
    path = writer.close({"instruction": "push"})
    text = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.partition("  custom_data")[0] + "  version: 9\n  message_count: 3\n"
                                        "  storage_identifier: mcap\n  relative_file_paths: [one.mcap]\n")
    with watched(BagError, MessageError):
        read(path)
    with watched(BagError, MessageError, ConfigError):
        look(path)
