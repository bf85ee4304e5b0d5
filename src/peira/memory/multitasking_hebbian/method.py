"""Multitasking Hebbian networks: what a person imports."""

from peira.memory.multitasking_hebbian.loss import parallel_loss
from peira.memory.multitasking_hebbian.network import MultitaskingHebbian, Recall, pattern_energy
from peira.memory.multitasking_hebbian.patterns import (
    ladder_spins,
    noisy_examples,
    ternary_patterns,
)
from peira.memory.multitasking_hebbian.theory import (
    Regime,
    Theory,
    critical_dilution,
    examples_needed,
    regime,
)

__all__ = [
    "MultitaskingHebbian",
    "Recall",
    "Regime",
    "Theory",
    "critical_dilution",
    "examples_needed",
    "ladder_spins",
    "noisy_examples",
    "parallel_loss",
    "pattern_energy",
    "regime",
    "ternary_patterns",
]
