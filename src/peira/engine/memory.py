"""Peak memory of this process."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path


def reset_peak_memory() -> None:
    """Start counting the peak anew where the system can (Linux); elsewhere it stays cumulative."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Largest resident memory in MiB since `reset_peak_memory`; NaN where it is not known."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 1024
    try:
        import resource
    except ImportError:
        return float("nan")
    # macOS counts in bytes, the BSDs in KiB.
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
