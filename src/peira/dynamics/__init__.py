"""Papers of the room `dynamics`."""
