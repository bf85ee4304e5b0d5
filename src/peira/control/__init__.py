"""Papers of the room `control`."""
