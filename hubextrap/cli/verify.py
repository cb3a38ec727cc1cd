"""`hubextrap verify`: compare the files of a prediction with its hubextrap.json."""

from __future__ import annotations

import dataclasses

import typer

from hubextrap.cli.options import Said, grouped
from hubextrap.cli.terminal import tell, tell_json


@grouped
def verify(
    reference: str = typer.Argument(
        ..., metavar="DIR|REF", help="A predicted model: a folder, or org/name@revision on the Hub."
    ),
    *,
    said: Said,
) -> None:
    """Check a predicted model against its hubextrap.json: every file, byte for byte, and nothing else."""
    from hubextrap import api
    from hubextrap.cli.progress import format_bytes

    found = api.verify(reference, progress=said.progress)
    if said.as_json:
        tell_json(dataclasses.asdict(found))
    else:
        for problem in found.problems:
            tell(f"mismatch: {problem}")
        for file in found.not_covered:
            tell(f"not covered: {file}")
        weights = [file for file in found.files if file.file.endswith(".safetensors")]
        bad = [file for file in found.files if file.problem]
        shown, kind = (weights, "weight file") if set(bad) <= set(weights) else (found.files, "file")
        if bad:
            verb = "is" if len(bad) == 1 else "are"
            tell(f"{found.name}: {len(bad)} of {len(shown)} {kind}s {verb} not as hubextrap.json says")
        else:
            files = f"{len(shown)} {kind}{'s' * (len(shown) != 1)}"
            size = format_bytes(sum(file.size for file in weights))
            tell(f"{found.name}: {files}, {size}, as hubextrap.json says")
    if found.problems:
        raise typer.Exit(1)
