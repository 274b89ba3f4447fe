"""The jobs: quantiser, codes, fine-tuning, and the loop they share."""

import os

# OpenMP threads that spin while they wait make two busy processes on the same cores slow each other tenfold
# (measured: 100 -> 5 observations/s); yielding costs a tenth on an idle machine. Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
