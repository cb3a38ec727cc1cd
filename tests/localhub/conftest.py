"""The unmodified client, with and without the right to write."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub


@pytest.fixture
def api(hub: LocalHub, token: str) -> HfApi:
    """The client of user "me"."""
    return HfApi(token=token)


@pytest.fixture
def stranger(hub: LocalHub) -> HfApi:
    """The client of a user who owns nothing here."""
    return HfApi(token=hub.add_token("stranger"))


@pytest.fixture
def anonymous(hub: LocalHub) -> HfApi:
    """The client without a token."""
    return HfApi(token=False)
