"""Spins with P-body Hebbian couplings: Monte Carlo, self-consistency, pictures as spins."""

from peira.engine.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "monte_carlo": ["PatternEnergy", "Trace", "heat_bath"],
        "self_consistency": [
            "FixedPoints",
            "fixed_point",
            "follow_branch",
            "gauss_hermite",
            "spinodal",
        ],
        "images": ["binarise", "flip"],
    },
)
