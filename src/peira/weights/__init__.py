"""Papers of the room `weights`; their public names are importable from here."""

from peira.engine.lazy import room

__getattr__, __dir__ = room(__name__)
