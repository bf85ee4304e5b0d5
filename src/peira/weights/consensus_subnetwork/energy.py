"""Energy that the processor's own counter reports, where there is one."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules of all processor packages since it was made (Intel's and AMD's RAPL, on Linux).

    Args:
        folder: where the kernel shows the counters.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._counters: dict[Path, tuple[int, int]] = {}
        for package in sorted(folder.glob("intel-rapl:*")):
            # "intel-rapl:0:1" is a part of package 0, counted there already.
            if package.name.count(":") == 1:
                try:
                    largest = int((package / "max_energy_range_uj").read_text())
                    self._counters[package] = (_read(package), largest)
                except (OSError, ValueError):
                    continue

    @property
    def joules(self) -> float | None:
        """Energy so far; None where no counter can be read. A counter may wrap once."""
        if not self._counters:
            return None
        total = 0
        for package, (start, largest) in self._counters.items():
            now = _read(package)
            total += now - start + (largest if now < start else 0)
        return total / 1e6


def _read(package: Path) -> int:
    return int((package / "energy_uj").read_text())
