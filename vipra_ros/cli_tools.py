"""Commands that look after the machine and the robot; `cli.py` has the table they stand in."""

from vipra_ros.command import Command, arg, to

TOOLS = (
    Command("incident", "Safety", "What happened in the last seconds before a fault: order, values, limits, plot.",
            "vipra incident ~/.ros/incidents/incident-20260101-120000-000",
            (arg("file", metavar="FILE", help="bag of the executor's flight recorder"),
             arg("--plot", default="", metavar="PNG", help="where to draw it; default: FILE.png")),
            to("data.incident_show:main")),
)
