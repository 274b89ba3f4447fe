"""Opens the data set with the real `lerobot` package and compares it frame by frame with what the bags say."""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

#: Joints: float32 of what is interpolated here in float64, rad. Pictures: H.264 at crf 14, mean grey levels.
NUMBERS, PICTURES = 2e-6, 3.0


def main(out: Path) -> int:
    dataset = LeRobotDataset("local/dataset", root=out / "dataset", video_backend="pyav")
    print(f"lerobot opened {dataset.num_episodes} episodes, {dataset.num_frames} frames, {dataset.fps} Hz")
    references = [np.load(out / f"episode{i}.npz") for i in range(dataset.num_episodes)]
    worst = dict.fromkeys(("observation.state", "action"), 0.0) | dict.fromkeys(dataset.meta.video_keys, 0.0)
    frame = [0] * dataset.num_episodes
    for i in range(len(dataset)):
        item = dataset[i]
        episode = int(item["episode_index"])
        reference, k = references[episode], frame[episode]
        frame[episode] += 1
        assert int(item["frame_index"]) == k and int(item["index"]) == i, (i, episode, k)
        assert abs(float(item["timestamp"]) - k / dataset.fps) < 1e-4 and item["task"] == str(reference["task"])
        for name in worst:
            got, want = item[name].numpy(), reference[name][k]
            if name.startswith("observation.images."):
                got, want = got.transpose(1, 2, 0) * 255.0, want.astype(np.float64)
            assert got.shape == want.shape, (name, got.shape, want.shape)
            off = np.abs(got - want)
            worst[name] = max(worst[name], float(off.mean() if off.ndim > 1 else off.max()))
    whole = all(n == len(r["action"]) for n, r in zip(frame, references))
    rows = np.concatenate([r["action"] for r in references])
    mean = np.abs(dataset.meta.stats["action"]["mean"] - rows.mean(axis=0)).max()
    for name, value in worst.items():
        print(f"  {name}: largest difference {value:.2e} " + ("grey levels (mean)" if "images" in name else ""))
    print(f"  mean of action in the statistics: {mean:.2e}")
    good = whole and mean < 1e-5 and all(v < (PICTURES if "images" in n else NUMBERS) for n, v in worst.items())
    print("the data set is what the bags say" if good else "the data set DIFFERS from the bags")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
