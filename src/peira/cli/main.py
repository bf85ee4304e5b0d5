"""The `peira` command: list, show, run, report, use, new, doctor.

Imports here are few and light, so that `list` and `show` answer at once; what is heavy is imported
by the command that needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from peira.engine.errors import PeiraError

app = typer.Typer(
    name="peira",
    help="Research papers about networks and learning as software that runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Data on standard output, words on the other.")]


def main() -> None:
    """Run the command line; a `PeiraError` is one line on standard error and exit status 2."""
    try:
        app()
    except PeiraError as error:
        print(f"peira: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of our output has gone (`peira list | head`); that is no error of ours.
        sys.stderr.close()
        raise SystemExit(141) from None


@app.command("list")
def list_(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only papers with all of these words.")
    ] = None,
    field: Annotated[str, typer.Option(help="Only this field.")] = "",
    as_json: Json = False,
) -> None:
    """Papers, one line each, with the verdicts of their last run."""
    from peira.cli.catalogue import find, print_list, summary

    found = find(words or [], field)
    if as_json:
        write([summary(paper) for paper in found])
    else:
        print_list(found)


@app.command()
def show(slug: str, as_json: Json = False) -> None:
    """The card of a paper: what it is, claims, last verdicts, findings, how to use it."""
    from peira.cli.catalogue import details, print_card
    from peira.engine.catalogue import paper

    if as_json:
        write(details(paper(slug)))
    else:
        print_card(paper(slug))


@app.command()
def run(
    slug: str,
    scale: Annotated[str, typer.Option(help="smoke, small or paper.")] = "small",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    cells: Annotated[
        list[str] | None, typer.Option(help="Only these cells: method=ticket,dense. Repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Set a cell field: weight_decay=0.5.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Bound on every loop's steps.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; 0: in this one. [all cores]")
    ] = None,
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    on: Annotated[Literal["local", "ray"], typer.Option(help="Where the cells run.")] = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure finished cells again.")] = False,
    as_json: Json = False,
) -> None:
    """Run a paper's study and judge its claims; a killed one continues where it was."""
    from peira.cli.running import run_and_print
    from peira.engine.session import Request

    request = Request(
        slug, scale, seeds, _many(cells, "--cells"), _one(settings, "--set"), max_steps, workers,
        store, on, fresh,
    )  # fmt: skip
    raise typer.Exit(run_and_print(request, as_json))


@app.command()
def report(
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers. [all with results]")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the file.")] = Path(),
    as_json: Json = False,
) -> None:
    """One self-contained HTML file: claims beside measurements, figures, data, settings."""
    from peira.engine.report import write_report

    path, included = write_report(slugs or [], out / "peira-report.html")
    if as_json:
        write({"report": str(path), "papers": included})
    else:
        print(path)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def use(context: typer.Context, slug: Annotated[str, typer.Argument()] = "--help") -> None:
    """A paper's method on your own files: peira use SLUG COMMAND ... (SLUG --help lists them)."""
    from peira.cli.using import run_command

    run_command(slug, context.args)


@app.command()
def new(
    slug: str,
    field: Annotated[str, typer.Option(help="The room it belongs to, such as graphs.")],
    into: Annotated[Path, typer.Option(help="A checkout of Peira, or any folder.")] = Path(),
) -> None:
    """The folder of a new paper: in a checkout of Peira, or as a plug-in package of its own."""
    from peira.cli.scaffold import make_paper

    for path in make_paper(slug, field, into):
        print(path)


@app.command()
def doctor(
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI to try.")] = None,
    as_json: Json = False,
) -> None:
    """What is installed, what is missing and the one command that adds it."""
    from peira.cli.doctor import examine, print_findings

    findings = examine(store)
    if as_json:
        write(findings)
    else:
        print_findings(findings)
    raise typer.Exit(0 if findings["store"]["reachable"] else 1)


def write(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def _one(settings: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not (name and equals and value):
            raise PeiraError(f"{option} {setting!r}: expected NAME=VALUE")
        pairs[name.strip().replace("-", "_")] = value.strip()
    return pairs


def _many(settings: list[str] | None, option: str) -> dict[str, list[str]]:
    return {name: value.split(",") for name, value in _one(settings, option).items()}
