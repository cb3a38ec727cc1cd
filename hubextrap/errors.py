"""Every error that hubextrap raises on purpose.

A message names the thing (file, line, tensor, step or revision) and says what to do about it; where it is one
file, line, tensor, step or repo, the attribute of that name holds it too, for programs and tests. The CLI
prints it behind ``error:`` and exits with 1, or with 3 for PredictionWorse. No message holds a token or a
signed address, nor a character that a terminal acts on, nor a line that is not ours: each is cleaned when the
error is made, and one of several lines comes from `own_lines`.
"""

from __future__ import annotations

import sys

from hubextrap.foreign_text import OwnLines, as_shown
from hubextrap.redaction import redact, rewrite_error

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Iterable


class HubExtrapError(Exception):
    """Base of every error that hubextrap raises on purpose.

    Its message is redacted and fit for a terminal; the error that is being handled when it is made is
    redacted too: a traceback shows both.
    """

    file: str | None
    """The file that is wrong: a path, or its name in the checkpoint."""
    tensor: str | None
    """The tensor that is wrong."""
    step: int | None
    """The training step of the checkpoint that is wrong."""
    repo: str | None
    """The Hub repo that it is about."""
    line: int | None
    """The line of the file."""
    parts: tuple[HubExtrapError, ...]
    """Where it tells of several problems: each of them, with a file and a line of its own."""

    def __init__(
        self,
        *message: object,
        file: object = None,
        line: int | None = None,
        tensor: str | None = None,
        step: int | None = None,
        repo: str | None = None,
        parts: Iterable[HubExtrapError] = (),
    ) -> None:
        super().__init__(*map(_shown, message))
        self.file, self.tensor, self.repo = (
            None if name is None else str(_shown(name)) for name in (file, tensor, repo)
        )
        self.step, self.line, self.parts = step, line, tuple(parts)
        rewrite_error(sys.exc_info()[1], redact)


def _shown(part: object) -> str:
    text = str(part)
    return OwnLines(as_shown(text)) if isinstance(text, OwnLines) else as_shown(text)


class WrongArgument(HubExtrapError, TypeError):
    """An argument of a function is nothing that the function takes."""


def wrong_argument(name: str, wanted: str, given: object) -> WrongArgument:
    """The error for it.

    Args:
        wanted: what it has to be, e.g. ``a path``.
    """
    what = "None" if given is None else f"of the class {type(given).__name__}"
    return WrongArgument(f"{name}: has to be {wanted}, and is {what}")


class RecipeError(HubExtrapError):
    """A recipe does not say what to do; the message lists every problem with its line."""


class TrajectoryError(HubExtrapError):
    """Checkpoints cannot be found, pinned or put in order."""


class ReferenceNotFound(TrajectoryError):
    """No such repo, revision, file or folder."""


class AccessDenied(TrajectoryError):
    """The repo is gated or private and the token at hand does not open it."""


class AmbiguousTrajectory(TrajectoryError):
    """More than one series of checkpoints is there; the message lists them."""


class StepError(TrajectoryError):
    """A step is missing, is there twice, or lies on the wrong side of the target."""


class ClockError(TrajectoryError):
    """The learning rate of a step is not known; the message says what to state."""


class CheckpointError(HubExtrapError):
    """A checkpoint cannot be used."""


class CorruptFile(CheckpointError):
    """A header, an index or the length of a file is wrong."""


class UnsupportedCheckpoint(CheckpointError):
    """There are no safetensors weights of a whole model: pickle only, adapters only, none at all."""


class CheckpointMismatch(CheckpointError):
    """Names, shapes, dtypes or tying differ between checkpoints that should be combined."""


class NonFinite(CheckpointError):
    """NaN or infinity in what is combined, or in what comes out of it."""


class MethodError(HubExtrapError):
    """A merge method cannot serve these steps or parameters."""


class BrokenMethod(MethodError):
    """A merge method failed, or returned what is no coefficients or displacements."""


class SourceError(HubExtrapError):
    """Bytes that should be there could not be read."""


class OutputError(HubExtrapError):
    """The output cannot be written, or is there already."""


class PushError(HubExtrapError):
    """The Hub did not take the commit."""


class EvaluationError(HubExtrapError):
    """lm-eval could not be run as asked."""


class MissingExtra(HubExtrapError):
    """A package that only an extra of hubextrap brings is not installed, too old, or cannot be imported."""

    extra: str
    """The extra."""

    def __init__(self, *message: object, extra: str = "") -> None:  # unpickling gives the message alone
        super().__init__(*message)
        self.extra = extra


class CommandFailed(HubExtrapError):
    """A command that `hubextrap reground` ran could not be started, or did not end well."""


class MayPass(HubExtrapError):
    """A worker met what another attempt may not meet; the CLI exits with 75 (EX_TEMPFAIL of sysexits.h)."""


class PredictionWorse(HubExtrapError):
    """A prediction scores less than was asked for (`hubextrap.evaluation.Gate`); nothing is broken."""
