"""NAT: link prediction on streams of timed edges with hashed neighbourhood dictionaries."""
