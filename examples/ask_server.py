"""Ask a policy server about a data set's frames.

    python examples/ask_server.py ws://127.0.0.1:8000 out/dataset

`vipra serve models/tiny` starts a server. This program needs no torch; an openpi server needs --describe.
"""

import argparse

from vipra_ros import Dataset, connect_policy, observation_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="ws://HOST:PORT, wss:// for TLS")
    parser.add_argument("dataset", help="data set at the policy's rate")
    parser.add_argument("--token-file", default="", help="file with the server's token")
    parser.add_argument("--describe", default="", help="YAML file on a server that does not say what it serves")
    parser.add_argument("--count", type=int, default=5, help="questions")
    a = parser.parse_args()

    dataset = Dataset(a.dataset)
    policy = connect_policy(a.server, a.token_file, deadline=5.0, describe=a.describe)
    config = policy.checkpoint.config
    print(f"{a.server}: {config.horizon} steps of {config.action_space} at {config.rate:g} Hz from {config.cameras}")
    for number in range(a.count):
        index = number * (len(dataset) - 1) // max(1, a.count - 1)
        answer = policy.infer(observation_at(dataset, index, policy), seed=0)
        print(f"frame {index}: first row {answer.actions[0].round(3).tolist()}, {answer.timing['total']:.0f} ms, "
              f"{answer.timing['overhead']:.1f} of them on the way")
    policy.close()


if __name__ == "__main__":
    main()
