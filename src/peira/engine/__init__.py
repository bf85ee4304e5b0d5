"""Cells, runs, verdicts, store, execution, report, catalogue: knows no paper."""
