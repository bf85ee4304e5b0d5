"""Papers of the room `memory` and their spins; public names are importable from here."""

from peira.engine.lazy import room

__getattr__, __dir__ = room(__name__, "spins")
