"""Frames to video and back: tolerance, random access, joining, chroma."""

import numpy as np
import pytest

from vipra_ros.data.video import (
    Codec,
    FrameReader,
    VideoEncoder,
    VideoError,
    VideoSeries,
    captioned,
    encode_video,
    read_frames,
)


def image(i: int, height: int = 50, width: int = 66) -> np.ndarray:
    """A gradient whose brightness tells its number, and a saturated square."""
    y, x = np.mgrid[0:height, 0:width]
    out = np.stack([x * 2, y * 3, np.full_like(x, 4 * i)], axis=-1).astype(np.uint8)
    out[10:20, 5 + i : 15 + i] = [(230, 20, 20), (20, 200, 30), (25, 40, 230)][i % 3]
    return out


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p"])
def test_frames_survive_within_the_codecs_tolerance(tmp_path, pixels):
    frames = [image(i) for i in range(20)]
    path = tmp_path / "a.mp4"
    assert encode_video(path, frames, 15.0, Codec(pixel_format=pixels)) == 20
    got = list(read_frames(path, 15.0))
    assert len(got) == 20 and got[0].dtype == np.uint8 and got[0].shape == (50, 66, 3)
    error = np.array(got, int) - np.array(frames)
    # no colour cast: matrix and range are those of the tags; halved chroma clips at the square's edges
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < (1.0 if pixels == "yuv444p" else 2.0)
    if pixels == "yuv444p":
        assert np.abs(error).mean() < 1.0 and np.abs(error).max() < 40


def test_random_access_equals_the_stream(tmp_path):
    path = tmp_path / "a.mp4"
    encode_video(path, (image(i) for i in range(30)), 15.0, Codec(keyframe_interval=5))
    stream = list(read_frames(path, 15.0))
    reader = FrameReader(15.0)
    for i in (29, 0, 7, 7, 12, 1, 28):
        assert np.array_equal(reader.frame(path, i), stream[i])
    assert np.array_equal(list(read_frames(path, 15.0, 11, 14)), stream[11:14])
    with pytest.raises(VideoError, match="no frame 30"):
        reader.frame(path, 30)
    reader.close()


def test_episodes_are_appended_unchanged_and_files_roll_over(tmp_path):
    parts = []
    for k in range(4):
        parts.append(tmp_path / f"part{k}.mp4")
        encode_video(parts[-1], [image(10 * k + i) for i in range(10 + k)], 15.0)
    limit = 2 * parts[0].stat().st_size
    series = VideoSeries(lambda n: tmp_path / "out" / f"{n}.mp4", 15.0, limit)
    spans = [series.append(part, 10 + k) for k, part in enumerate(parts)]
    series.close()
    assert spans[0].start == 0.0 and spans[1].start == pytest.approx(10 / 15)
    assert {s.file for s in spans} == {0, 1}, "the limit opened a second file"
    for part, span in zip(parts, spans, strict=True):
        first, last = round(span.start * 15), round(span.stop * 15)
        joined = list(read_frames(tmp_path / "out" / f"{span.file}.mp4", 15.0, first, last))
        assert np.array_equal(joined, list(read_frames(part, 15.0)))


@pytest.mark.parametrize("fps", [15.0, 29.97, 10.0, 12.5])
def test_rates_keep_frame_numbers(tmp_path, fps):
    path = tmp_path / "a.mp4"
    encode_video(path, [image(i % 40) for i in range(100)], fps)
    series = VideoSeries(lambda n: tmp_path / "out.mp4", fps, 10**9)
    series.append(path, 100)
    series.append(path, 100)
    series.close()
    stream, reader = list(read_frames(tmp_path / "out.mp4", fps)), FrameReader(fps)
    assert len(stream) == 200
    for i in (199, 100, 99, 1):
        assert np.array_equal(reader.frame(tmp_path / "out.mp4", i), stream[i])
    reader.close()


def test_what_does_not_fit_is_named(tmp_path):
    encode_video(tmp_path / "a.mp4", [image(0)] * 3, 15.0)
    encode_video(tmp_path / "b.mp4", [image(0, 40, 40)] * 3, 15.0)
    series = VideoSeries(lambda n: tmp_path / "out.mp4", 15.0, 10**9)
    series.append(tmp_path / "a.mp4", 3)
    with pytest.raises(VideoError, match="another size"):
        series.append(tmp_path / "b.mp4", 3)
    with pytest.raises(VideoError, match="holds 3 frames, 4 were announced"):
        series.append(tmp_path / "a.mp4", 4)
    series.close()
    encoder = VideoEncoder(tmp_path / "c.mp4", 15.0)
    encoder.add(image(0))
    with pytest.raises(VideoError, match="one size per camera"):
        encoder.add(image(0, 40, 40))
    encoder.close()
    with pytest.raises(VideoError, match="at least one frame"):
        encode_video(tmp_path / "d.mp4", [], 15.0)
    with pytest.raises(VideoError, match="even sizes"):
        encode_video(tmp_path / "e.mp4", [image(0, 41, 40)], 15.0, Codec(pixel_format="yuv420p"))
    (tmp_path / "f.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError, match="cannot be read"):
        next(read_frames(tmp_path / "f.mp4", 15.0))


def test_chroma_is_chosen_by_size_and_keeps_colours(tmp_path):
    import av

    for size, expected in (((64, 64), "yuv444p"), ((240, 320), "yuv420p"), ((241, 321), "yuv444p")):
        path = tmp_path / f"{size[0]}.mp4"
        picture = np.full((*size, 3), (200, 60, 30), np.uint8)
        encode_video(path, [picture] * 2, 15.0)
        with av.open(str(path)) as file:
            assert file.streams.video[0].pix_fmt == expected == Codec().chroma(*size)
        assert np.abs(next(read_frames(path, 15.0)).astype(int) - picture).max() <= 3


def test_a_caption_stands_below_the_picture_and_sides_stay_even():
    image = np.full((96, 128, 3), 90, np.uint8)
    for text in ("", "trial 1", "trial 12 of 40: move the gripper over the green cube and wait there"):
        frame = captioned(image, text)
        assert np.array_equal(frame[:96], image) and frame.shape[1] == 128 and not frame.shape[0] % 2
        assert (frame[96:].max() > 200) == bool(text)
