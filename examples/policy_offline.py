"""How far is a policy from a demonstration?

    python examples/policy_offline.py models/tiny out/dataset --episode 0

Asks the policy at some frames of a recorded episode and compares its chunk with the actions that followed. This is no
success rate: a policy may do well in another way. It is a quick check that pictures, joints and units fit.
"""

import argparse

import numpy as np

from vipra_ros import Dataset, load_policy, observation_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of the policy, or the name of a shipped one")
    parser.add_argument("dataset", help="data set at the policy's rate")
    parser.add_argument("--episode", type=int, default=0, help="number of the episode")
    parser.add_argument("--every", type=int, default=15, help="frames between two questions")
    a = parser.parse_args()

    dataset, policy = Dataset(a.dataset), load_policy(a.checkpoint, threads=1)
    episode, actions = dataset.episodes[a.episode], dataset.numeric("action")
    print(f"{episode.task!r}, {episode.length} frames")
    errors = []
    for index in range(episode.start, episode.start + episode.length, a.every):
        prediction = policy.infer(observation_at(dataset, index, policy), seed=0)
        rows = np.minimum(index + np.arange(len(prediction.actions)), episode.start + episode.length - 1)
        off = np.abs(prediction.actions - actions[rows])[:, :-1]  # rad; the last column is the gripper
        errors.append(off.mean())
        print(f"  {(index - episode.start) / dataset.fps:5.2f} s  mean {off.mean():.3f} rad, largest {off.max():.3f}, "
              f"answered in {prediction.timing['total']:.0f} ms")
    print(f"mean over {len(errors)} chunks: {np.mean(errors):.3f} rad")


if __name__ == "__main__":
    main()
