"""What is in a data set: episodes, joints, pictures.

For instance: python examples/read_dataset.py out/dataset
"""

import argparse

import numpy as np

from vipra_ros import Dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="folder that vipra convert made, or any LeRobot v3.0 data set")
    a = parser.parse_args()

    dataset = Dataset(a.dataset)
    print(f"{len(dataset.episodes)} episodes, {len(dataset)} frames at {dataset.fps:g} Hz, cameras {dataset.cameras}")
    for episode in dataset.episodes[:10]:
        print(f"  {episode.index:3} {episode.length / dataset.fps:5.1f} s  {episode.task}")

    state = dataset.numeric("observation.state")  # (frames, 8): seven joints, rad; gripper, +1 open .. -1 closed
    action = dataset.numeric("action")  # (frames, 8): to be reached one period later
    print("range of the joints, rad:", np.ptp(state[:, :-1], axis=0).round(2))
    print("largest distance of action and state, rad:", np.abs(action - state)[:, :-1].max().round(3))

    for camera in dataset.cameras:  # frames() streams pictures in order, frame() takes one by its number
        image = dataset.frame(camera, 0)
        print(f"{camera}: {image.shape[1]}x{image.shape[0]}, mean brightness {image.mean():.0f}")


if __name__ == "__main__":
    main()
