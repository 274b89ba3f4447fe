"""Commands that look after the machine and the robot; `cli.py` has the table they stand in."""

TOOLS = ()
