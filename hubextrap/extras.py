"""What only an extra of the package brings: whoever needs one asks for it here, before anything costly.

`pip install hubextrap` brings neither torch nor transformers, which no merge, push, scan or backtest needs.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from hubextrap.errors import MissingExtra

MODULES: dict[str, tuple[str, ...]] = {
    "cuda": ("torch",),
    "eval": ("lm_eval", "torch", "transformers", "accelerate", "datasets"),
    "localhub": ("pygit2",),
    "logits": ("torch", "transformers"),
    "math": ("math_verify",),
    "mergekit": ("mergekit", "torch"),
    "report": ("matplotlib",),
    "train": ("torch", "transformers", "accelerate"),
}
"""What is imported of each; torch before transformers, which warns where it finds none."""


def require(extra: str, what: str, *, load: bool = True) -> None:
    """See that what ``extra`` brings can be imported here.

    Args:
        what: needs it, as the message says.
        load: import it, which alone shows that it works; else it is only looked for.

    Raises:
        MissingExtra: a package is not installed, or its import fails.
    """
    for module in MODULES[extra]:
        try:
            if load:
                import_module(module)
            elif find_spec(module) is None:
                raise ModuleNotFoundError(name=module)
        except Exception as error:  # of any kind, where libraries do not fit each other or the machine
            raise _missing(extra, what, module, error) from error


def _missing(extra: str, what: str, module: str, error: Exception) -> MissingExtra:
    """The error, with a remedy that works: pip leaves alone what it finds installed, broken or not."""
    absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
    if absent is not None and "." not in absent:
        needed = absent if absent == module else f"{absent} (for {module})"
        return MissingExtra(f"{what} needs {needed}: pip install 'hubextrap[{extra}]'", extra=extra)
    said = next(iter(str(error).splitlines()), "")
    return MissingExtra(
        f"{what} needs {module}, which is installed and cannot be imported ({type(error).__name__}: {said}): "
        f"pip install --force-reinstall 'hubextrap[{extra}]'",
        extra=extra,
    )
