"""Observation -> chunk: history of frames, tokens, engine, sampler, checkpoint."""

import os

# The policy shares its cores with cameras and the executor: waiting threads must yield, not spin (see learning).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
