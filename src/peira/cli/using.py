"""`peira use SLUG COMMAND`: the functions of a paper's `use.py` as commands."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import typer
from typer.core import TyperGroup

from peira.cli.catalogue import sound
from peira.engine.catalogue import paper, papers
from peira.engine.errors import PeiraError, StudyError


def run_command(slug: str, arguments: Sequence[str]) -> None:
    """Run one command of a paper on the person's own files.

    Raises `PeiraError` for whatever the method finds wrong with them.
    """
    if slug in ("--help", "-h"):
        print("Usage: peira use SLUG COMMAND ...\n\nPapers:")
        for found in sound(papers()):
            print(f"  {found.slug:24} {found.card.summary}")
        return
    command = commands(slug)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _said
            command(list(arguments) or ["--help"], prog_name=f"peira use {slug}")
    except (PeiraError, BrokenPipeError):
        raise
    # Methods are plain Python and say so what they cannot use; here a person typed it.
    except (ValueError, OSError) as error:
        raise PeiraError(" ".join(str(error).split())) from error


def _said(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for a person; where in the code a method warns is for its developers."""
    text = (
        " ".join(str(message).split())
        if issubclass(category, UserWarning)
        else warnings.formatwarning(message, category, filename, lineno, line).rstrip()
    )
    print(f"peira: warning: {text}", file=file or sys.stderr)


def commands(slug: str) -> TyperGroup:
    """The click group with one command for each name in `use.__all__`."""
    subject = paper(slug)
    module = subject.module("use")
    names = getattr(module, "__all__", None)
    if not names:
        raise StudyError(f"{subject.package}.use: `__all__` must name its commands")
    group = typer.Typer(
        help=subject.card.summary, add_completion=False, pretty_exceptions_enable=False
    )
    # With a callback even a single function stays a subcommand.
    group.callback()(lambda: None)
    for name in names:
        group.command(name.replace("_", "-"))(getattr(module, name))
    command = typer.main.get_command(group)
    command.help = subject.card.summary
    if not isinstance(command, TyperGroup):
        raise PeiraError(f"{slug}: cannot mount its commands")
    return command
