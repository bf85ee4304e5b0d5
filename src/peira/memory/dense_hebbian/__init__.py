"""Dense Hebbian networks: P-body memories learned from noisy examples, and their theory."""
