"""Videos with instructions become a data set of pictures, and stage 2 takes it."""

import json

import av
import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.data import import_videos as module
from vipra_ros.data.dataset import Dataset
from vipra_ros.data.dataset_check import check
from vipra_ros.data.dataset_edit import merge
from vipra_ros.data.import_videos import VideoSettings, import_videos

SETTINGS = VideoSettings(fps=10.0, size=64)


def write(path, seconds=1.0, rate=30, grey=0, size=(96, 64)):
    """A picture that gets brighter, 1 level a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        for i in range(round(seconds * rate)):
            picture = np.full((size[1], size[0], 3), grey + i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clips(tmp_path):
    for i, name in enumerate(("a.mp4", "deep/b.mp4", "c.mp4")):
        write(tmp_path / "clips" / name, seconds=1 + i, grey=50 * i)
    (tmp_path / "clips.csv").write_text(
        'video,instruction,who\na.mp4,open the drawer,x\ndeep/b.mp4,"pour, slowly",y\n')
    return tmp_path / "clips"


def test_pictures_and_instructions_at_true_times(clips, tmp_path):
    made = import_videos([clips], tmp_path / "out", SETTINGS, tmp_path / "clips.csv", "do something")
    assert [(e.task, e.length) for e in made.episodes] == [
        ("open the drawer", 10), ("do something", 30), ("pour, slowly", 20)]  # a, c, deep/b
    assert made.fps == 10 and made.cameras == ["front"]
    assert made.features["observation.images.front"]["shape"] == [64, 64, 3]
    levels = [float(image.mean()) for _, image in made.frames("front", 0, 10)]
    assert np.allclose(levels, np.arange(0, 30, 3), atol=2.5), "every third frame of 30 Hz"
    assert [made.row(i)["source"] for i in range(3)] == ["a.mp4", "c.mp4", "deep/b.mp4"]
    assert check(tmp_path / "out", deep=True) == []
    assert not (tmp_path / ".out.partial").exists()


def test_one_frame_in_some_for_slow_videos_and_sources_of_different_pace_become_one(clips, tmp_path):
    people = import_videos([clips], tmp_path / "people", VideoSettings(fps=10.0, size=64, every=2), instruction="do it")
    assert [e.length for e in people.episodes] == [5, 15, 10]
    levels = [float(image.mean()) for _, image in people.frames("front", 0, 5)]
    assert np.allclose(levels, np.arange(0, 30, 6), atol=2.5)
    robots = import_videos([clips], tmp_path / "robots", SETTINGS, tmp_path / "clips.csv", "do it")
    wanted = [(e.task, e.length) for d in (people, robots) for e in d.episodes]
    cut_again = import_videos([people.path, robots.path], tmp_path / "both", SETTINGS)
    merged = Dataset(merge([people.path, robots.path], tmp_path / "merged"))
    for both in (cut_again, merged):
        assert [(e.task, e.length) for e in both.episodes] == wanted
    assert [json.loads(merged.row(i)["meta"])["every"] for i in (0, 5)] == [2, 1]


def test_processes_make_the_same_and_an_interrupted_run_goes_on(clips, tmp_path, monkeypatch):
    whole = import_videos([clips], tmp_path / "whole", SETTINGS, instruction="do it")
    cut, count = module._cut, []

    def some(*job):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(job)
        return cut(*job)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_cut", some)
        with pytest.raises(KeyboardInterrupt):
            import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")
    assert not (tmp_path / "out").exists()
    kept = list((tmp_path / ".out.partial" / "episodes").glob("*.json"))
    assert len(kept) == 2
    encoder, encoded = module.VideoEncoder, []
    monkeypatch.setattr(module, "VideoEncoder", lambda path, *a: encoded.append(path) or encoder(path, *a))
    again = import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")
    assert len(encoded) == 1 and encoded[0].with_suffix(".json") not in kept
    shared = import_videos([clips], tmp_path / "shared", SETTINGS, instruction="do it", workers=2)
    for made in (again, shared):
        assert [e.length for e in made.episodes] == [e.length for e in whole.episodes]
        for (_, mine), (_, theirs) in zip(made.frames("front"), whole.frames("front"), strict=True):
            assert np.array_equal(mine, theirs)


def test_what_cannot_be_read_is_named_and_left_out(clips, tmp_path, capsys):
    (clips / "bad.mp4").write_bytes(b"no video")
    made = import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")
    assert len(made.episodes) == 3
    assert "bad.mp4 is left out: " in capsys.readouterr().err
    for path in clips.rglob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(ConfigError, match="none of 4 videos could be read"):
        import_videos([clips], tmp_path / "none", SETTINGS, instruction="do it")


@pytest.mark.parametrize(("text", "word"), [
    ("video,instruction\nmissing.mp4,x\n", "there is no video 'missing.mp4'"),
    ("video,instruction\na.mp4,x\n", "2 of 3 videos have no instruction, the first is .*c.mp4"),
    ("clip,caption\na.mp4,x\n", "must name the columns video and instruction, it says clip, caption"),
    ("", "it says nothing"),
])
def test_instructions_that_do_not_fit_are_refused_before_anything_is_made(clips, tmp_path, text, word):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError, match=word):
        import_videos([clips], tmp_path / "out", SETTINGS, tmp_path / "bad.csv")
    assert not (tmp_path / ".out.partial").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        import_videos([clips], tmp_path / "out", SETTINGS, tmp_path / "no.csv")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists"):
        import_videos([clips], tmp_path / "there", SETTINGS)


def test_pre_training_reads_it(clips, tmp_path):
    """From clips and a CSV file to a pre-trained checkpoint, by the commands."""
    from vipra_ros import cli

    def vipra(words):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert not ended.value.code

    write(clips / "d.mp4", seconds=2.0)
    loop = ["--set", "loop.steps=1", "--set", "loop.batch=2", "--set", "loop.threads=1"]
    out = {name: str(tmp_path / name) for name in ("set", "vq", "latent", "labels", "pretrain")}
    vipra(["dataset", "import", str(clips), "--out", out["set"], "--instructions", str(tmp_path / "clips.csv"),
           "--instruction", "do it"])
    vipra(["train", "vq", out["set"], out["vq"], "--set", "model.codebook_size=16", "--set", "frames=60", *loop])
    vipra(["train", "latent", out["set"], out["latent"], "--also", str(clips), *loop, "--set", "frames=3"])
    vipra(["label", out["set"], out["latent"], out["labels"]])
    vipra(["train", "pretrain", out["set"], out["labels"], out["pretrain"], "--variant", "vipra_fm",
           "--set", f"vq={out['vq']}", "--set", "evaluate_on=4", *loop])
    made = json.loads((tmp_path / "pretrain" / "checkpoint" / "pretrain.json").read_text())
    assert made["flow_estimator"] == made["perceptual_loss"] == "pyramid" and made["ahead"] == 28
    assert len(Dataset(out["set"]).episodes) == 4


def test_telephones_film_lying_and_say_so(tmp_path):
    path, turned = tmp_path / "lying" / "a.mp4", tmp_path / "turned" / "a.mp4"
    write(path)
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = 200  # left is bright
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data, unit = path.read_bytes(), (1 << 16).to_bytes(4, "big")
    matrix = unit + bytes(12) + unit + bytes(12) + (1 << 30).to_bytes(4, "big")
    quarter = bytes(4) + unit + bytes(4) + (-1 << 16).to_bytes(4, "big", signed=True) + bytes(16)  # clockwise
    at = data.rindex(matrix)  # of the track: the film's own stands before it
    turned.parent.mkdir()
    turned.write_bytes(data[:at] + quarter + data[at + 32 :])
    made = import_videos([turned.parent], tmp_path / "out", SETTINGS, instruction="do it")
    image = made.frame("front", 0)
    assert image[:20].mean() > 180 > 20 > image[-20:].mean(), "left became top"


def test_a_name_is_one_video_and_one_instruction(tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder / "1.mp4")
    table = tmp_path / "t.csv"
    table.write_text("video,instruction\n1.mp4,open the drawer\n")
    with pytest.raises(ConfigError, match="'1.mp4' is .*x/1.mp4 and .*y/1.mp4; give the folder above both"):
        import_videos([tmp_path / "x", tmp_path / "y"], tmp_path / "out", SETTINGS, table, "something else")
    table.write_text("video,instruction\n1.mp4,open the drawer\n1.mp4,close it\n")
    with pytest.raises(ConfigError, match="two instructions, 'open the drawer' and 'close it'"):
        import_videos([tmp_path / "x"], tmp_path / "out", SETTINGS, table)


def test_one_process_makes_a_data_set(clips, tmp_path):
    from vipra_ros.data.stage import staged

    with staged(tmp_path / "out"), pytest.raises(ConfigError, match="is being made by another process"):
        import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")
    assert not (tmp_path / ".out.partial").exists()
    import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")


def test_a_data_set_of_videos_is_drawn_and_not_replayed(clips, tmp_path):
    from vipra_ros.data import dataset_show
    from vipra_ros.data.dataset import DatasetError
    from vipra_ros.data.replay import dataset_replay

    made = import_videos([clips], tmp_path / "out", SETTINGS, instruction="do it")
    dataset_show.draw(made, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
    with pytest.raises(DatasetError, match="nameless columns"):
        dataset_replay(tmp_path / "out", 0)
