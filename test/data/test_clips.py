"""Clips from videos written here in every container, and from a data set."""

import json

import av
import numpy as np
import pytest

from vipra_ros.data.clips import ClipError, ClipSettings, ClipStream, clips_of, find_videos, square
from vipra_ros.data.convert import convert
from vipra_ros.data.dataset import Dataset, DatasetError

CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


def level(k):
    """Grey of frame k of 60, no two alike and neighbours far apart."""
    return round(20 + 3.5 * (k * 17 % 60))


def write_video(path, count, fps=30, size=(64, 48)):
    """A video whose frame k is grey of level(k); h264 with B-frames, as files from elsewhere have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "10", "deadline": "realtime", "cpu-used": "8"} if path.suffix != ".avi" else {"q": "1"}
        if path.suffix == ".avi":
            stream.bit_rate = 4_000_000
        for k in range(count):
            image = np.full((size[1], size[0], 3), level(k), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(clip):
    """Which frames a clip has, by their grey."""
    means = clip.frames.reshape(len(clip.frames), -1).mean(axis=1)
    table = np.array([level(k) for k in range(60)])
    return [int(np.abs(table - m).argmin()) for m in means], np.abs(table[:, None] - means).min(axis=0).max()


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize(("fps", "factor"), [(30.0, 1), (15.0, 2), (10.0, 3)])
def test_frames_are_those_of_the_time(tmp_path, ending, fps, factor):
    path = write_video(tmp_path / f"a{ending}", 60)
    (item,) = find_videos([path])
    settings = ClipSettings(size=32, fps=fps, frames=3, stride=2, step=3)
    clips = list(clips_of(item, settings))
    assert len(clips) == (60 // factor - 5) // 3 + 1 and clips[0].frames.shape == (3, 32, 32, 3)
    for n, clip in enumerate(clips):
        found, off = numbers(clip)
        assert found == [(3 * n + 2 * k) * factor for k in range(3)] and off < 1.7
        assert clip.start == pytest.approx(3 * n / fps) and clip.source == path.name
    for first in (1, 4, len(clips) - 1):  # from the middle of the file the same
        again = list(clips_of(item, settings, first))
        assert len(again) == len(clips) - first
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(again, clips[first:]))


def test_a_slow_video_repeats_frames(tmp_path):
    (item,) = find_videos([write_video(tmp_path / "a.mp4", 10, fps=5)])
    frames = [numbers(c)[0][0] for c in clips_of(item, ClipSettings(size=16, fps=15.0, frames=1))]
    assert frames == [k // 3 for k in range(30)]


@pytest.fixture
def folder(tmp_path):
    for i, ending in enumerate([".mp4", ".webm", ".avi", ".mp4", ".mp4", ".avi"]):
        write_video(tmp_path / "videos" / f"{i % 2}" / f"v{i}{ending}", 24 + 4 * i)
    return tmp_path / "videos"


def stream(folder, position=None, epoch=0, warn=None, **changes):
    settings = ClipSettings(**{"size": 16, "fps": 30.0, "open_files": 3, "seed": 5} | changes)
    return ClipStream(find_videos([folder]), settings, epoch, position, warn or pytest.fail)


def key(clip):
    return clip.source, round(clip.start, 4)


def test_every_clip_once_mixed_and_the_same_for_the_same_seed(folder):
    one = [key(c) for c in stream(folder)]
    assert len(set(one)) == len(one) == sum(24 + 4 * i - 1 for i in range(6))
    assert one == [key(c) for c in stream(folder)]
    assert one != [key(c) for c in stream(folder, seed=6)] and one != [key(c) for c in stream(folder, epoch=1)]
    assert len({name for name, _ in one[:20]}) == 3  # of the open files
    ordered = [key(c) for c in stream(folder, shuffle=False)]
    assert ordered == sorted(ordered) and sorted(one) == ordered
    shards = [key(c) for shard in range(4) for c in stream(folder, shard=shard, shards=4)]
    assert sorted(shards) == ordered


@pytest.mark.parametrize("at", [0, 1, 37, 150])
def test_goes_on_where_it_stood(folder, at):
    first = stream(folder)
    given = iter(first)
    for _ in range(at):
        next(given)
    position = json.loads(json.dumps(first.position))
    rest, again = list(given), list(stream(folder, position))
    assert [key(c) for c in rest] == [key(c) for c in again]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, again))
    with pytest.raises(ClipError, match="other videos or settings"):
        stream(folder, position, frames=3)


def test_broken_files_are_named_and_left_out(folder):
    (folder / "0" / "text.mp4").write_text("no video")
    (folder / "0" / "empty.avi").touch()
    whole = (folder / "1" / "v1.webm").read_bytes()
    (folder / "1" / "cut.webm").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "1" / "short.mp4", 2)
    said = []
    s = stream(folder, warn=said.append, frames=4)
    found = {c.source for c in s}
    assert {f"{i % 2}/v{i}{e}" for i, e in enumerate([".mp4", ".webm", ".avi", ".mp4", ".mp4", ".avi"])} <= found
    assert not found & {"0/text.mp4", "0/empty.avi", "1/short.mp4"}
    text = "\n".join(said)
    assert all(name in text for name in ("text.mp4", "empty.avi", "short.mp4")) and "a clip needs 4" in text
    assert s.left_out == len(said) <= 4
    bad = folder / "bad"
    bad.mkdir()
    (bad / "a.mp4").write_text("x")
    with pytest.raises(ClipError, match="none of 1 videos"):
        list(stream(bad, warn=said.append))
    with pytest.raises(ClipError, match="no such file"):
        find_videos([folder / "nothing"])
    (folder / "none").mkdir()
    with pytest.raises(ClipError, match="no videos in"):
        find_videos([folder / "none"])


def test_memory_holds_a_window_a_file_not_a_video(tmp_path):
    import tracemalloc
    write_video(tmp_path / "v" / "long.mp4", 600, size=(32, 32))
    stream = ClipStream(find_videos([tmp_path / "v"]), ClipSettings(size=32, fps=30.0, frames=2, step=5), 0)
    next(given := iter(stream))
    tracemalloc.start()
    count = sum(1 for _ in given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 119 and peak < 600 * 32 * 32 * 3 / 4


def test_a_data_set_gives_episodes_of_its_cameras(record, tmp_path):
    convert([record(f"b{i}", seconds=1.0 + i) for i in range(2)], tmp_path / "set", quiet=True)
    d = Dataset(tmp_path / "set")
    items = find_videos([tmp_path / "set"], cameras=["wrist"])
    assert [i.name for i in items] == ["set/wrist/0", "set/wrist/1"]
    settings = ClipSettings(size=64, fps=15.0, frames=2, stride=2, step=1, shuffle=False)
    clips = list(ClipStream(items, settings))
    assert len(clips) == sum(e.length - 2 for e in d.episodes)
    for clip, at in zip(clips, [e.start + k for e in d.episodes for k in range(e.length - 2)]):
        assert np.array_equal(clip.frames[0], d.frame("wrist", at)) and np.array_equal(
            clip.frames[1], d.frame("wrist", at + 2)
        )
    assert len(find_videos([tmp_path / "set"])) == 4
    with pytest.raises(DatasetError, match="no camera 'top'"):
        find_videos([tmp_path / "set"], cameras=["top"])


def test_the_middle_is_cut_out():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200
    assert (square(image, 40) == 200).all() and (square(image.transpose(1, 0, 2).copy(), 20) == 200).all()
