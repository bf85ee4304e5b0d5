"""Peira: research papers about networks and learning as software that runs."""

from peira.engine.lazy import exports

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "engine.cells": ["Cell", "Censored", "Scale", "Study"],
        "engine.errors": ["PeiraError"],
        "engine.runs": ["Run"],
        "engine.verdict": ["Verdict"],
        "engine.cards": ["Card", "Claim"],
    },
)
