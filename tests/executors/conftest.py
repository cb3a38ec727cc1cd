from __future__ import annotations

import pytest

pytest.register_assert_rewrite("hubextrap.executors.testing", "hubextrap.executors.testing_run")
