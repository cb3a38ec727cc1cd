"""To the Hub: the push, the model card, and where a prediction came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubextrap.hub.card import model_card, with_target
    from hubextrap.hub.commit import PushResult, commit_files
    from hubextrap.hub.outgoing import OutgoingFile
    from hubextrap.hub.provenance import (
        PROVENANCE_FILE,
        CoefficientRule,
        InputCheckpoint,
        InputFile,
        OutputShard,
        Provenance,
        build_provenance,
    )
    from hubextrap.hub.provenance_checks import read_provenance
    from hubextrap.hub.push import commit_message, push_folder
    from hubextrap.hub.sink import HubSink
    from hubextrap.hub.target import PushTarget, check_target

_MODULES = {
    "PROVENANCE_FILE": "provenance",
    "CoefficientRule": "provenance",
    "HubSink": "sink",
    "InputCheckpoint": "provenance",
    "InputFile": "provenance",
    "OutgoingFile": "outgoing",
    "OutputShard": "provenance",
    "Provenance": "provenance",
    "PushResult": "commit",
    "PushTarget": "target",
    "build_provenance": "provenance",
    "check_target": "target",
    "commit_files": "commit",
    "commit_message": "push",
    "model_card": "card",
    "push_folder": "push",
    "read_provenance": "provenance_checks",
    "with_target": "card",
}

__all__ = [
    "PROVENANCE_FILE",
    "CoefficientRule",
    "HubSink",
    "InputCheckpoint",
    "InputFile",
    "OutgoingFile",
    "OutputShard",
    "Provenance",
    "PushResult",
    "PushTarget",
    "build_provenance",
    "check_target",
    "commit_files",
    "commit_message",
    "model_card",
    "push_folder",
    "read_provenance",
    "with_target",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
