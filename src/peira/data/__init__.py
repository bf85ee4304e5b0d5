"""Readers of the fields' official formats, checked, and where the data sets come from."""

from peira.engine.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "errors": ["DataError", "MissingData"],
        "hypergraph": ["TemporalHypergraph"],
        "models": ["load_model", "save_model"],
        "sources": ["fingerprint", "locate"],
        "tables": ["read_table"],
    },
)
