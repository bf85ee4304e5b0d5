"""A plug-in package with one paper."""
