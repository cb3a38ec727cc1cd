"""What only an extra of the package brings: whoever needs one asks for it here, before anything costly.

`pip install hubextrap` brings neither torch nor transformers, which no merge, push, scan or backtest needs.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from hubextrap.errors import MissingExtra

MODULES: dict[str, tuple[str, ...]] = {
    "adapters": ("torch", "transformers", "peft"),
    "cuda": ("torch",),
    "eval": ("lm_eval", "torch", "transformers", "accelerate", "datasets"),
    "localhub": ("pygit2",),
    "logits": ("torch", "transformers"),
    "math": ("math_verify",),
    "mergekit": ("mergekit", "torch"),
    "ray": ("ray",),
    "report": ("matplotlib",),
    "train": ("torch", "transformers", "accelerate"),
}
"""What is imported of each; torch before transformers, which warns where it finds none."""


LOWEST = {
    "accelerate": "1.6",
    "lm_eval": "0.4.13",
    "matplotlib": "3.9",
    "mergekit": "0.1.5",
    "peft": "0.21",
    "pygit2": "1.15",
    "ray": "2.41",
    "torch": "2.6",
    "transformers": "5.6",
}
"""As pyproject.toml has them: pip leaves an older one alone where it installs hubextrap without the extra."""


def require(extra: str, what: str, *, load: bool = True) -> None:
    """See that what ``extra`` brings can be imported here.

    Args:
        what: needs it, as the message says.
        load: import it, which alone shows that it works; else it is only looked for.

    Raises:
        MissingExtra: a package is not installed, is too old or another one, or its import fails.
    """
    for module in MODULES[extra]:
        try:
            spec = find_spec(module)
            if spec is None or spec.origin is None:  # a folder of that name is no package
                raise ModuleNotFoundError(name=module)
            _check(extra, what, module, spec.origin, is_package=spec.submodule_search_locations is not None)
            if load:
                loaded = import_module(module)
                _check_version(extra, what, module, getattr(loaded, "__version__", None))
        except MissingExtra:
            raise
        except Exception as error:  # of any kind, where libraries do not fit each other or the machine
            raise _missing(extra, what, module, error) from error


def _check(extra: str, what: str, module: str, place: str, *, is_package: bool) -> None:
    """Refuse what has the name alone, or is too old to be imported."""
    if module not in LOWEST:
        return
    if not is_package:  # in the current folder, say, where python -m looks first
        said = f"{what} needs {module}, but Python finds {place} under that name: rename it"
        raise MissingExtra(said, extra=extra)
    with suppress(PackageNotFoundError):
        _check_version(extra, what, module, version(module))


def _check_version(extra: str, what: str, module: str, found: object) -> None:
    lowest = LOWEST.get(module)
    if lowest is not None and isinstance(found, str) and _numbers(found) < _numbers(lowest):
        raise MissingExtra(
            f"{what} needs {module} {lowest} or later, and {found[:40]} is installed: "
            f"pip install 'hubextrap[{extra}]'",
            extra=extra,
        )


def _numbers(text: str) -> list[int]:
    """A version's numbers; what is built from between two versions counts as the later one."""
    return [int(number) for number in re.findall(r"\d{1,9}", text.partition("+")[0])[:3]]


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
