"""The `peira` command."""
