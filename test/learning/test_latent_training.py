"""Stage 1 from video files to a checkpoint and labels, at toy size: a bright square that moves left or right."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vipra_ros.config import ConfigError, build
from vipra_ros.data.clips import Item
from vipra_ros.data.import_videos import VideoSettings, import_videos
from vipra_ros.learning import footage, label, latent, latent_health
from vipra_ros.learning.footage import open_footage
from vipra_ros.learning.loop import Interrupted

LENGTH = 20


def write_video(path, seed, length=LENGTH):
    import av

    rng = np.random.default_rng(seed)
    x, step = 8, 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"crf": "12"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for _ in range(length):
            picture = np.full((32, 32, 3), 60, np.uint8)
            picture[12:20, x : x + 8] = 220
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
            step = -step if rng.random() < 0.3 or not 2 <= x + step <= 22 else step
            x += step
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_video(folder / f"{i}.mp4", i)
    return folder


def training(**changes):
    loop = dict(steps=8, batch=4, lr=0.002, warmup_steps=1, evaluate_every=100, log_every=1, bf16=False,
                save_seconds=0, threads=1) | changes.pop("loop", {})
    model = dict(image_size=32, patch=8, image_layers=0, width=16, heads=2, inverse_blocks=1, forward_blocks=1,
                 code_dim=8, predict_change=True)
    values = dict(loop=loop, model=model, fps=15.0, frames=4, holdout=0.2, evaluate_on=8, flow_from_step=5,
                  flow_ramp_steps=2, codes_from_data=True, replace_every=3)
    return build(latent.LatentTraining, values | changes)


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    return latent.train(videos, tmp_path_factory.mktemp("latent"), training())


def test_a_run_that_ends_before_its_codes_begin_says_so(videos, tmp_path, capsys):
    early = training(continuous_steps=20, code_follow=0.9, loop={"steps": 4})
    folder = latent.train(videos, tmp_path / "early", early)
    said = json.loads((folder / "health.json").read_text())["alarms"][0]
    assert "before step 20, this is step 4" in said and said in capsys.readouterr().out
    later = training(continuous_steps=3, code_follow=0.9, loop={"steps": 8})
    folder = latent.train(videos, tmp_path / "later", later)
    assert not any("quantised" in line for line in json.loads((folder / "health.json").read_text())["alarms"])
    assert latent.load_latent(folder)[0].quantiser.started
    with pytest.raises(ConfigError, match="codes_from_data: true"):
        training(continuous_steps=3, codes_from_data=False)


def test_a_run_leaves_a_whole_folder(trained):
    model, notes = latent.load_latent(trained)
    assert notes["losses"] == {"flow": "pyramid", "perceptual": "pyramid"}
    assert notes["hash"] == latent.weights_hash(model.state_dict())
    for name in ("psnr", "psnr_copy", "ssim", "shuffle_ratio", "perplexity", "dead_codes", "probe_pixels_r2",
                 "flow_error", "change_explained"):
        assert name in notes["figures"]
    usage = np.array(json.loads((trained / "health.json").read_text())["usage"])
    assert usage.shape == (1, 8) and usage.sum() == pytest.approx(1, abs=1e-3)
    assert all((trained / f"{name}.png").exists() for name in ("sheet", "usage", "loss"))
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert "flow" not in rows[5] and "flow" in rows[6], "the gate opens behind step 5"


def test_resumes_identically(videos, trained, tmp_path, monkeypatch):
    original = latent.run
    monkeypatch.setattr(latent, "run", lambda job, loop, out: original(job, loop, out, lambda s: s.step >= 4))
    with pytest.raises(Interrupted):
        latent.train(videos, tmp_path, training())
    monkeypatch.setattr(latent, "run", original)
    latent.train(videos, tmp_path, training())
    assert latent.load_latent(tmp_path)[1]["hash"] == latent.load_latent(trained)[1]["hash"]


def test_frames_that_raft_does_not_take_are_told_at_the_start():
    with pytest.raises(ConfigError, match="32 x 32 px; it takes multiples of 8 from 128"):
        training(flow="raft")


def test_schedules():
    c = training(flow_from_step=8, replace_every=10, replace_every_late=100, replace_late_from=50, replace_until=300)
    assert [s for s in range(1, 500) if latent.replaces(c, s)] == [10, 20, 30, 40, 100, 200, 300]
    assert [latent.flow_gate(c, s) for s in (7, 8, 9, 10, 99)] == [0, 0, 0.5, 1, 1]


def test_image_encoder_learns_at_its_own_rate(videos, tmp_path):
    from vipra_ros.learning.optimiser import optimisers

    c = training(encoder_rate=0.1)
    job = latent.LatentJob(c, open_footage([videos], tmp_path, 32, 15.0), tmp_path)
    rate = {id(p): g["peak"] for o in optimisers(job, c.loop) for g in o.param_groups for p in g["params"]}
    assert len(rate) == len(list(job.model.parameters()))
    assert rate[id(job.model.inverse.image.patch.weight)] == pytest.approx(0.0002)
    assert rate[id(job.model.dynamics.patch.weight)] == pytest.approx(0.002)


def test_footage_is_decoded_once_and_goes_on(videos, tmp_path, capsys):
    a = open_footage([videos], tmp_path, 32, 15.0)
    assert a.images.shape == (6 * LENGTH, 32, 32, 3) and len(a.held) == 1
    note = json.loads((tmp_path / "frames.json").read_text())
    note["shots"] = note["shots"][:2]  # as if killed there
    (tmp_path / "frames.json").write_text(json.dumps(note))
    b = open_footage([videos], tmp_path, 32, 15.0)
    assert np.array_equal(a.images, b.images) and a.shots == b.shots
    train, held = a.starts(False, 4), a.starts(True, 4)
    assert len(train) == 5 * (LENGTH - 3) and not set(train) & set(held)
    with pytest.raises(ConfigError, match="frames of other videos"):
        open_footage([videos], tmp_path, 16, 15.0)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.mp4").write_bytes(b"no video")
    write_video(tmp_path / "more" / "good.mp4", 0, length=5)
    assert len(open_footage([tmp_path / "more"], tmp_path / "other", 32, 15.0).images) == 5
    assert "bad.mp4 is left out" in capsys.readouterr().err
    open_footage([tmp_path / "more"], tmp_path / "other", 32, 15.0)
    assert f"left out before: bad.mp4 (1); to try again, delete {tmp_path / 'other'}" in capsys.readouterr().err
    (tmp_path / "more" / "good.mp4").unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match="no video could be read; see the messages above"):
            open_footage([tmp_path / "more"], tmp_path / "none", 32, 15.0)
        assert "bad.mp4 is left out" in capsys.readouterr().err


def test_footage_that_is_whole_is_opened_without_a_write(videos, tmp_path):
    """Processes of one training open it side by side."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video")
    write_video(tmp_path / "in" / "good.mp4", 0, length=5)
    open_footage([tmp_path / "in"], tmp_path, 32, 15.0)
    (tmp_path / "frames.json").chmod(0o444)
    before = (tmp_path / "frames.json").stat()
    open_footage([tmp_path / "in"], tmp_path, 32, 15.0)
    after = (tmp_path / "frames.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_frames_of_other_data_of_the_same_names_are_refused(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    for source, instruction, other in (("videos", "", ""), ("set", "go", "stay")):
        if instruction:
            import_videos([videos], tmp_path / source, VideoSettings(size=32), instruction=instruction)
        before = open_footage([tmp_path / source], tmp_path / f"{source}-frames", 32, 15.0)
        assert open_footage([tmp_path / source], tmp_path / f"{source}-frames", 32, 15.0).identity == before.identity
        if instruction:
            shutil.rmtree(tmp_path / source)
            import_videos([videos], tmp_path / source, VideoSettings(size=32), instruction=other)
        else:
            write_video(tmp_path / source / "0.mp4", 9)
        with pytest.raises(ConfigError, match="frames of other videos"):
            open_footage([tmp_path / source], tmp_path / f"{source}-frames", 32, 15.0)
    note = tmp_path / "set-frames" / "frames.json"
    known = json.loads(note.read_text())
    known["identity"] = json.dumps(json.loads(known["identity"])[:5])  # as earlier versions left it
    note.write_text(json.dumps(known))
    assert open_footage([tmp_path / "set"], tmp_path / "set-frames", 32, 15.0).identity == known["identity"]


def test_videos_of_several_sources_may_have_the_same_names(tmp_path, capsys):
    for source, brightness in (("a", 0), ("b", 9)):
        (tmp_path / source / "videos").mkdir(parents=True)
        for i in range(3):
            write_video(tmp_path / source / "videos" / f"{i}.mp4", brightness + i)
    both = [tmp_path / s / "videos" for s in "ab"]
    whole = open_footage(both, tmp_path / "whole", 32, 15.0)
    assert len(whole.shots) == 6 and len({s.name for s in whole.shots}) == len({s.group for s in whole.shots}) == 6
    note = json.loads((tmp_path / "whole" / "frames.json").read_text())
    note["shots"] = note["shots"][:4]  # as if killed there
    (tmp_path / "whole" / "frames.json").write_text(json.dumps(note))
    assert np.array_equal(open_footage(both, tmp_path / "whole", 32, 15.0).images, whole.images)


def test_joints_are_those_of_the_own_data_set(monkeypatch):
    sets = [SimpleNamespace(path=Path(name), fps=15.0, features={"observation.state": {}}, numeric=lambda _, v=v: v,
                            episodes=[SimpleNamespace(start=0, length=4), SimpleNamespace(start=4, length=3)])
            for name, v in (("x/dataset", np.full((7, 2), 1.0)), ("y/dataset", np.full((7, 2), 2.0)))]
    monkeypatch.setattr(footage, "Dataset", lambda source: sets[str(source).startswith("y")])
    monkeypatch.setattr(footage, "find_videos", lambda sources, _: [Item(Path("v"), name=f"dataset/front/{i}")
                                                                     for i in range(2)])
    monkeypatch.setattr(Path, "exists", lambda self: True)
    listed = [entry for n, name in enumerate(("x", "y")) for entry in footage._items(Path(name), (), f"{n}:")]
    shots = [footage.Shot(item.name, 4 * i, 4 - i % 2, 15.0, group) for i, (item, group, _) in enumerate(listed)]
    joints = footage._joints(listed, shots, 16)
    assert [float(joints[s.first, 0]) for s in shots] == [1.0, 1.0, 2.0, 2.0]


def test_videos_kept_for_evaluation_are_drawn(tmp_path, videos):
    held = {next(iter(open_footage([videos], tmp_path / str(s), 32, 15.0, seed=s).held)) for s in range(4)}
    assert len(held) > 1, "not the last ones, which are all of one task"


def test_probe_finds_motion_in_codes_and_not_in_noise():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, (400, 2))
    motion = np.stack([codes[:, 0] % 3, codes[:, 1] ** 2], 1) + 0.1 * rng.normal(size=(400, 2))
    fit = np.arange(400) < 200
    assert latent_health.linear_probe(codes, motion, 8, fit) > 0.9
    assert latent_health.linear_probe(rng.integers(0, 8, (400, 2)), motion, 8, fit) < 0.1
    assert np.isnan(latent_health.linear_probe(codes, np.zeros((400, 2)), 8, fit))


def test_alarms():
    even = np.full((2, 8), 1 / 8)
    assert not latent_health.alarms({"perplexity_place": 8.0, "shuffle_ratio": 1.5}, even)
    dead = latent_health.usage_of(np.zeros((10, 3, 2), int), 8)
    said = latent_health.alarms({"perplexity_place": latent_health.perplexity(dead[0]), "shuffle_ratio": 1.0}, dead)
    assert len(said) == 3 and "dead codes 1, 2, 3" in said[0]


def test_held_out_videos_that_are_too_short_are_told(videos, trained, tmp_path):
    seen = open_footage([videos], tmp_path, 32, 15.0)
    seen = dataclasses.replace(seen, shots=[s for s in seen.shots if s.group not in seen.held])
    health = latent_health.examine(latent.load_latent(trained)[0], seen, 4, 1, 4)
    assert health.alarms[0].startswith("no held-out video has 4 frames; these are training clips")
    assert "psnr" in health.figures and "probe_pixels_r2" not in health.figures


def test_labels_stream_as_windows_say(trained):
    model, _ = latent.load_latent(trained)
    frames = np.random.default_rng(0).integers(0, 255, (23, 32, 32, 3), dtype=np.uint8)
    for stride in (1, 2):
        got = label.codes_of(model, iter(frames), stride, batch=4)
        ahead = label.future(23, stride)
        assert got.shape == (23, 14) and ahead[0] == min(14 * stride, 22)
        for t in (0, 5, 22):
            at = np.minimum(t + stride * np.arange(15), 22)
            with torch.no_grad():
                want = model.encode(latent.to_frames(torch.from_numpy(frames[at]))[None])
            assert np.array_equal(got[t], want.flatten().numpy())
        for every in (2, 5, 30):
            assert np.array_equal(label.codes_of(model, iter(frames), stride, batch=4, every=every), got[::every])
            assert np.array_equal(label.future(23, stride, every=every), ahead[::every])


def test_a_cluster_labels_the_same_and_a_lost_shard_is_made_by_the_next_run(
    videos, trained, tmp_path, ray_cluster, monkeypatch, capsys,
):  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    label.label(videos, trained, one, videos_per_shard=4)
    shard = label._shard

    def deadly(work, number):
        if number == 0:
            os._exit(9)
        return shard(work, number)

    with monkeypatch.context() as patch:
        patch.setattr(label, "_shard", deadly)
        with pytest.raises(ConfigError, match="1 of 2 shards are missing, the first is shard 1: Ray: .*goes on with"):
            label.label(videos, trained, two, videos_per_shard=4, ray=ray_cluster)
    assert [p.name for p in two.glob("*.parquet")] == ["labels-00001.parquet"]
    capsys.readouterr()
    label.label(videos, trained, two, videos_per_shard=4, ray=ray_cluster)
    assert f"labels: {4 * LENGTH} frames of 4 videos labelled now" in capsys.readouterr().out
    for path in sorted(one.glob("*.parquet")):
        assert pq.read_table(path).equals(pq.read_table(two / path.name))


def test_label_shards_resume_and_divide(videos, trained, tmp_path, capsys):
    label.label(videos, trained, tmp_path / "one", videos_per_shard=4)
    first, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("[label]"))
    assert first.startswith("[label] shard 1/2: ") and ", left " in first and "left" not in last
    for rank in (0, 1):
        label.label(videos, trained, tmp_path / "two", videos_per_shard=4, rank=rank, world=2)
    names = ["labels-00000.parquet", "labels-00001.parquet"]
    assert sorted(p.name for p in (tmp_path / "two").glob("*.parquet")) == names
    for name in names:
        assert pq.read_table(tmp_path / "one" / name).equals(pq.read_table(tmp_path / "two" / name))
    table = pq.read_table([tmp_path / "one" / name for name in names])
    assert str(table.schema.field("codes").type) == "list<element: int8>"
    assert table.num_rows == 6 * LENGTH
    row = table.slice(LENGTH + 3, 1).to_pylist()[0]
    assert (row["episode_index"], row["frame_index"], row["future_index"], len(row["codes"])) == (1, 3, 17, 14)
    before = (tmp_path / "one" / names[1]).read_bytes()
    (tmp_path / "one" / names[1]).unlink()
    label.label(videos, trained, tmp_path / "one", videos_per_shard=4)
    assert (tmp_path / "one" / names[1]).read_bytes() == before
    head = json.loads((tmp_path / "one" / "labels.json").read_text())
    assert (head["steps"], head["codes_per_step"], head["codebook"]) == (14, 1, 8)
    label.label(videos, trained, tmp_path / "few", every=4)
    few = pq.read_table(tmp_path / "few" / names[0])
    fewer = table.filter([i % 4 == 0 for i in table["frame_index"].to_pylist()])
    assert few.equals(fewer)
    with pytest.raises(ConfigError, match="has labels with stride = 0, not 2"):
        label.label(videos, trained, tmp_path / "one", stride=2, videos_per_shard=4)
    with pytest.raises(ConfigError, match="run vipra train latent first"):
        label.label(videos, tmp_path, tmp_path / "three")


@pytest.mark.parametrize("wrong", (dict(every=0), dict(every=-1), dict(stride=-1)))
def test_steps_that_lead_nowhere_are_refused(tmp_path, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name} = {value}.*every from 1 on"):
        label.label(tmp_path, tmp_path, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_data_set_is_labelled_in_whole_and_of_videos_what_can_be_read(videos, trained, tmp_path, capsys):
    shutil.copytree(videos, tmp_path / "videos")
    made = import_videos([videos], tmp_path / "set", VideoSettings(size=32), instruction="go").video_of("front", 0)[0]
    (tmp_path / "videos" / "1.mp4").write_bytes(b"no video")
    label.label(tmp_path / "videos", trained, tmp_path / "some")
    assert pq.read_table(tmp_path / "some" / "labels-00000.parquet").num_rows == 5 * LENGTH
    assert "1.mp4 is left out" in capsys.readouterr().err
    whole = made.read_bytes()
    made.write_bytes(b"no video")
    with pytest.raises(ConfigError, match=f"{made.name} cannot be read: .*run the same command again, it goes on"):
        label.label(tmp_path / "set", trained, tmp_path / "all")
    assert not list((tmp_path / "all").glob("*.parquet")), "a shard that is there is not made again"
    made.write_bytes(whole)
    label.label(tmp_path / "set", trained, tmp_path / "all")
    assert pq.read_table(tmp_path / "all" / "labels-00000.parquet").num_rows == 6 * LENGTH


def test_latents_without_their_weights_promise_no_labels(videos, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    weights = tmp_path / "copy" / "latent.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for problem in ("unreadable", "No such file"):
        with pytest.raises(ConfigError, match=f"latent.safetensors: .*{problem}.*copy the whole folder again"):
            label.label(videos, tmp_path / "copy", tmp_path / "labels")
        assert not (tmp_path / "labels").exists()
        weights.unlink(missing_ok=True)
