"""lm-eval and what it stands on, without their warnings, bars and log lines between ours."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hubextrap.hub_access import keep_to_the_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("lm_eval", "transformers", "datasets", "huggingface_hub", "accelerate", "httpx", "httpx2")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let only errors of these libraries through; everything is as before afterwards.

    Nor do they tell anyone but the Hub what they load, from then on.
    """
    import datasets.utils
    import huggingface_hub.utils

    keep_to_the_endpoint()
    with warnings.catch_warnings(), ExitStack() as undo:
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        from transformers.utils import logging as transformers_logging

        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            undo.callback(transformers_logging.enable_progress_bar)
        for library in (datasets.utils, huggingface_hub.utils):
            if not library.are_progress_bars_disabled():
                library.disable_progress_bars()
                undo.callback(library.enable_progress_bars)
        yield


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence what has no switch in lm-eval: a bar, git's word on the folder, a look at the machine."""
    import lm_eval.api.task
    import lm_eval.evaluator

    with ExitStack() as undo:
        _replace(undo, lm_eval.api.task, "tqdm", partial(lm_eval.api.task.tqdm, disable=True))
        _replace(undo, lm_eval.evaluator, "get_git_commit_hash", lambda: None)
        # `pip list` among others, up to seconds for each checkpoint, and nothing here reads it
        _replace(undo, lm_eval.evaluator, "add_env_info", lambda storage: None)
        yield


def _replace(undo: ExitStack, module: Any, name: str, value: Any) -> None:
    undo.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)
