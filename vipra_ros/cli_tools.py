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
)
