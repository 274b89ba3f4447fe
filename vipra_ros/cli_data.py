"""Commands around recorded episodes and data sets; `cli.py` has the table they stand in."""

from vipra_ros.command import Command, arg, to

DATASET = arg("dataset", metavar="DATASET", help="folder of a LeRobot v3.0 data set")

JSON = arg("--json", action="store_true", help="print JSON")

RECORDING = (
    Command("keys", "Data", "Start, label and throw away episodes of a running recorder with single keys.",
            "vipra keys",
            (arg("--namespace", default="", metavar="NAME", help="namespace of the recorder"),), to("nodes.keys:run")),
    Command("bags info", "Data", "What recorded episodes hold, and what is wrong with them.",
            "vipra bags info out/bags",
            (arg("bags", nargs="+", metavar="BAGS", help="episodes, or folders of them"), JSON),
            to("data.bag_info:main")),
    Command("bags repair", "Data", "Make readable what a killed recorder or a full disk left behind.",
            "vipra bags repair out/bags",
            (arg("folder", metavar="FOLDER", help="folder of episodes"),), to("data.repair:main")),
    Command("bags relabel", "Data", "Give a finished episode another instruction or label.",
            "vipra bags relabel out/bags/20260101-120000 --instruction 'lift the red cube' --success yes",
            (arg("bag", metavar="BAG", help="the episode"),
             arg("--instruction", metavar="TEXT", help="what it shows"),
             arg("--success", choices=("yes", "no"), help="whether it succeeded")), to("data.relabel:main")),
    Command("bench record", "Data", "What the recorder keeps of two 640x480 cameras at 30 Hz beside the simulator.",
            "vipra bench record --seconds 60 --json out/record.json",
            (arg("--seconds", type=float, default=60.0, help="of compressed pictures (%(default)s)"),
             arg("--raw-seconds", type=float, default=20.0, help="of raw ones (%(default)s)"),
             arg("--out", default="", metavar="DIR", help="folder for the bags; default: a temporary one"),
             arg("--json", dest="json_path", default="", metavar="FILE", help="write the figures here")),
            to("nodes.bench_record:run")),
)

DATASETS = (
    Command("dataset show", "Data", "Tasks, lengths, labels and numbers of a data set; a page of plots if wanted.",
            "vipra dataset show out/dataset --plot out/dataset.png",
            (DATASET, arg("--plot", default="", metavar="FILE", help="PNG for pictures and plots"), JSON),
            to("data.dataset_show:main")),
    Command("dataset check", "Data", "Is a data set what it says: tables, videos, times and statistics compared.",
            "vipra dataset check out/dataset --deep",
            (DATASET, arg("--deep", action="store_true", help="decode every frame"), JSON),
            to("data.dataset_check:main")),
    Command("dataset merge", "Data", "Make one data set of several.",
            "vipra dataset merge out/monday out/tuesday --out out/both",
            (arg("sources", nargs="+", metavar="DATASET", help="data sets with the same features"),
             arg("--out", required=True, metavar="OUT", help="folder of the new one")),
            to("data.dataset_edit:merge_main")),
    Command("dataset split", "Data", "Make two data sets of one.",
            "vipra dataset split out/dataset out/train out/held --share 0.9 --seed 0",
            (DATASET, arg("first", metavar="FIRST", help="folder for the chosen episodes"),
             arg("second", metavar="SECOND", help="folder for the others"),
             arg("--share", type=float, help="share of the episodes for FIRST, of every task alike"),
             arg("--episodes", default="", metavar="LIST", help="instead: those for FIRST, as in 0-9,12"),
             arg("--seed", type=int, default=0, help="which episodes the share is (%(default)s)")),
            to("data.dataset_edit:split_main")),
    Command("dataset replay", "Data", "Play an episode's actions on the simulated robot: does the task succeed again?",
            "vipra dataset replay out/dataset --episode 0-2 robot:=sim",
            (DATASET, arg("--episode", nargs="+", default=["0"], metavar=("N", "name:=value"),
                          help="number, or several as in 0-2,5; then launch arguments, robot:=sim if none"),
             arg("--json", dest="json_path", default="", metavar="FILE", help="write the figures here")),
            to("nodes.dataset_replay:run")),
)
