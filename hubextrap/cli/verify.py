"""`hubextrap verify`: hash the weights of a prediction and compare them with its hubextrap.json."""

from __future__ import annotations

import dataclasses
import json

import typer

from hubextrap.cli.terminal import tell, tell_json


def verify(
    reference: str = typer.Argument(
        ..., metavar="DIR|REF", help="A merged folder, or org/name@revision on the Hub."
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
    as_json: bool = typer.Option(False, "--json", help="Print every file with what is wrong as JSON."),
) -> None:
    """Check that a prediction's weights are, byte for byte, the ones that its hubextrap.json describes."""
    from hubextrap import api
    from hubextrap.cli.progress import format_bytes, open_progress

    found = api.verify(reference, progress=open_progress(quiet))
    if as_json:
        tell_json(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        for problem in found.problems:
            tell(f"mismatch: {problem}")
        count = len(found.files)
        size = format_bytes(sum(file.size for file in found.files))
        files = f"{count} weight file{'s' * (count != 1)}"
        if found.problems:
            tell(f"{found.name}: {len(found.problems)} of {files} are not as hubextrap.json says")
        else:
            tell(f"{found.name}: {files}, {size}, as hubextrap.json says")
    if found.problems:
        raise typer.Exit(1)
