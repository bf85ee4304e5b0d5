"""Case-based reasoning through prototypes: an explanation that is the computation (Li 2018)."""
