"""`vipra doctor`: what goes wrong before a robot moves, looked for one thing at a time.

Every check is a function that returns a :class:`report.Finding`; what it reads (files of /proc and /sys, clocks,
sockets, limits) comes in as an argument. Nothing here changes the machine, and nothing moves an arm.
"""
