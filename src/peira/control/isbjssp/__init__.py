"""Paper 30: learned dispatching for job shops with blocking, swaps and machine interruptions."""
