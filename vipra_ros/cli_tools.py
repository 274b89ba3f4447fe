"""Commands that look after the machine and the robot; `cli.py` has the table they stand in."""

from vipra_ros.command import Command, arg, to

TOOLS = (
    Command("incident", "Safety", "What happened in the last seconds before a fault: order, values, limits, plot.",
            "vipra incident ~/.ros/incidents/incident-20260101-120000-000",
            (arg("file", metavar="FILE", help="bag of the executor's flight recorder"),
             arg("--plot", default="", metavar="PNG", help="where to draw it; default: FILE.png")),
            to("data.incident_show:main")),
    Command("bench stop", "Safety", "Time from a stop call or stale input to zero velocity, beside v/a + one pass.",
            "vipra bench stop --stops 200 --real 20 --json out/stop.json",
            (arg("--stops", type=int, default=200, metavar="N", help="of the core in fake time, a cause (%(default)s)"),
             arg("--real", type=int, default=0, metavar="N", dest="real_stops",
                 help="through the node in dry run, topics and services, a cause (%(default)s)"),
             arg("--seed", type=int, default=0, help="of speeds and moments (%(default)s)"),
             arg("--json", dest="json_path", default="", metavar="FILE", help="write the figures here")),
            to("nodes.bench_stop:run")),
    Command("doctor", "Tools", "Look for what goes wrong before a robot moves; every finding with its remedy.",
            "vipra doctor --robot 172.16.0.2 --camera /camera/front/image_raw/compressed --checkpoint models/tiny",
            (arg("--robot", default="", metavar="IP", help="address of the arm's control unit; nothing moves"),
             arg("--gello", default="", metavar="PORT", help="serial port of the leader arm"),
             arg("--config", default="", metavar="FILE", help="of the leader arm; default: config/gello.yaml"),
             arg("--camera", action="append", default=[], metavar="TOPIC", help="camera topic; repeatable"),
             arg("--checkpoint", default="", metavar="DIR", help="the policy that is to run"),
             arg("--profile", default="fr3", help="robot profile (%(default)s)"),
             arg("--out", default=".", metavar="DIR", help="folder of the disk that episodes go to (%(default)s)"),
             arg("--json", action="store_true", help="print JSON")), to("doctor.main:main")),
    Command("completion", "Tools", "Print what makes a shell complete vipra's commands, options and arguments.",
            "vipra completion bash",
            (arg("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish"),), to("completion:main")),
)
