"""Papers of the room `training`."""
