"""Both sides of every comparison get one thread; set before any numerical library is loaded."""

from __future__ import annotations

import os

for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
