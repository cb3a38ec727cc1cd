"""To the Hub: the push, the model card, and where a prediction came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.hub.card import model_card
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
]

__getattr__ = names_of(__name__)
