"""The embedded robot: a table, cubes and cameras around a simulated Franka. The only importer of mujoco."""

import os

# Off-screen rendering, in software where there is no GPU; has to be said before mujoco is imported.
os.environ.setdefault("MUJOCO_GL", "egl")
