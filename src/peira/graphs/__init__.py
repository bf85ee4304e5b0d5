"""Papers of the room `graphs`."""
