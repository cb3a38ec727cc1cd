"""hubextrap: predict later RL checkpoints from earlier ones on the Hugging Face Hub."""

from __future__ import annotations

from hubextrap._version import __version__

__all__ = ["__version__"]
