"""Methods by name: what a signature says, who may register, and third-party packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError
from hubextrap.methods import find_method, method_names, parameter_problems, register_method, registry
from hubextrap.recipe import parse_recipe

PLUGIN = '''
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from collections.abc import Sequence

def latest(steps: Sequence[int], target_step: float, *, pull: float = 1.0):
    """From a package."""
    import numpy as np
    return np.array([0.0] * (len(steps) - 1) + [1.0])
'''


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    registry.find_method.cache_clear()
    yield
    registry.find_method.cache_clear()


def install(folder: Path, name: str, entry_points: str) -> None:
    """A distribution as pip leaves it: a module and its metadata."""
    (folder / f"{name}.py").write_text(PLUGIN)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hubextrap.methods]\n{entry_points}\n")


def with_choice(
    steps: list[int],
    target_step: float,
    *,
    kind: Literal["mean", "last"],
    power: float = 2,
    tag: str | None = None,
) -> NDArray[np.float64]:
    """A method with parameters of every type."""
    return np.ones(len(steps)) / len(steps)


def test_built_in_methods_and_their_parameters() -> None:
    assert set(method_names()) >= {"least_squares", "persistence", "two_point"}
    found = find_method("least_squares")
    assert [(p.name, p.default, p.required) for p in found.parameters] == [
        ("window", None, False),
        ("through_last", False, False),
    ]
    assert not found.needs_gram_matrix


def test_types_of_parameters() -> None:
    register_method("with_choice", with_choice)
    assert parameter_problems("with_choice", {"kind": "mean", "power": 1, "tag": None}) == []
    assert parameter_problems("with_choice", {"kind": "men", "power": "2", "tag": 3}) == [
        ("kind", "must be one of mean, last, not 'men'"),
        ("power", "must be a number, not '2'"),
        ("tag", "must be text or null, not 3"),
    ]
    assert parameter_problems("with_choice", {}) == [
        ("kind", "missing; with_choice needs it (one of mean, last)")
    ]


def test_a_name_is_registered_once() -> None:
    register_method("mine", with_choice)
    register_method("mine", with_choice)
    with pytest.raises(MethodError, match="two_point is already registered"):
        register_method("two_point", with_choice)
    assert find_method("two_point").function is not with_choice


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("hubextrap.nowhere:f", "cannot be imported from hubextrap.nowhere:f"),
        ("math:nothing", "cannot be imported from math:nothing"),
        ("math:pi", "math:pi is not a function"),
    ],
)
def test_targets_that_lead_nowhere(target: str, message: str) -> None:
    register_method("broken", target)
    with pytest.raises(MethodError, match=message):
        find_method("broken")


def test_a_function_of_another_shape_is_refused() -> None:
    register_method("odd", lambda weights, alpha=1: None)
    with pytest.raises(MethodError, match=r"odd has to take .* not \(weights, alpha"):
        find_method("odd")


def fitted(steps: list[int], target_step: float, gram: NDArray[np.float64], *, ridge: float = 0.1):  # type: ignore[no-untyped-def]
    """A method that fits."""
    return np.zeros(gram.shape[:-1])


def with_leave_one_out(leave_one_out: Callable[..., object]) -> Callable[..., object]:
    def method(
        steps: list[int], target_step: float, gram: NDArray[np.float64], *, ridge: float = 0.1
    ) -> object:
        return np.zeros(gram.shape[:-1])

    method.leave_one_out = leave_one_out  # type: ignore[attr-defined]
    return method


def test_a_signature_says_that_a_method_is_fitted() -> None:
    register_method("fitted", fitted)
    found = find_method("fitted")
    assert (found.fitted, found.needs_gram_matrix, found.leave_one_out) == (True, True, None)
    assert [parameter.name for parameter in found.parameters] == ["ridge"]
    own = lambda steps, rehearsals, gram, *, ridge=0.1: None  # noqa: E731
    register_method("own", with_leave_one_out(own))
    assert find_method("own").leave_one_out is own
    assert not find_method("low_rank").fitted
    assert find_method("calibrated").fitted


def test_a_prepared_of_another_shape_is_refused() -> None:
    def method(steps: list[int], target_step: float, *, gram_matrix: NDArray[np.float64]) -> object:
        return np.zeros(len(steps))

    method.prepared = lambda steps, gram, rank=1: None  # type: ignore[attr-defined]
    register_method("odd", method)
    with pytest.raises(MethodError, match=r"odd: its prepared has to take \(steps, gram, \*, …\)"):
        find_method("odd")


@pytest.mark.parametrize(
    "leave_one_out",
    [lambda steps, gram, *, ridge=0.1: None, lambda steps, rehearsals, gram: None],
    ids=["no rehearsals", "no ridge"],
)
def test_a_leave_one_out_of_another_shape_is_refused(leave_one_out: Callable[..., object]) -> None:
    register_method("odd", with_leave_one_out(leave_one_out))
    with pytest.raises(MethodError, match="odd: its leave_one_out has to take"):
        find_method("odd")


def test_what_cannot_be_called_as_a_method() -> None:
    register_method("twice", lambda steps, target_step, gram, *, gram_matrix: None)
    with pytest.raises(MethodError, match="twice takes both gram and gram_matrix"):
        find_method("twice")
    register_method("opaque", type)
    with pytest.raises(MethodError, match="opaque: <class 'type'> has no signature"):
        find_method("opaque")


@pytest.mark.parametrize("annotation", ["nowhere", "len.nothing", "1 +"])
def test_a_type_that_cannot_be_told(annotation: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def odd(steps, target_step, *, x: {annotation!r} = 1): ...", scope)
    register_method("odd", scope["odd"])
    with pytest.raises(MethodError, match=r"odd: .* must be importable"):
        find_method("odd")


def test_a_package_that_fails_to_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_package.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    register_method("failing", "failing_package:method")
    with pytest.raises(MethodError, match=r"failing cannot be imported .* division by zero"):
        find_method("failing")


def test_methods_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "latest_package", "latest = latest_package:latest\ntwo_point = latest_package:latest")
    monkeypatch.syspath_prepend(tmp_path)
    assert "latest" in method_names()
    recipe = parse_recipe("{trajectory: {repo: run}, merge_method: latest, parameters: {target_step: 9}}")
    assert recipe.merge_method == "latest"
    assert parameter_problems("latest", {"pul": 1}) == [("pul", "unknown key; did you mean pull?")]
    assert find_method("two_point").function.__module__ == "hubextrap.methods.lines", (
        "built-in names stay ours"
    )
    with pytest.raises(MethodError, match="no merge method lattest; did you mean latest"):
        find_method("lattest")


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one_package", "other_package"):
        install(tmp_path, name, f"latest = {name}:latest")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MethodError, match=r"several packages \(one_package:latest, other"):
        find_method("latest")


def test_built_in_names_load_no_entry_points() -> None:
    program = (
        "import importlib.metadata as m\n"
        "def refuse(**kw): raise SystemExit('entry points were read')\n"
        "m.entry_points = refuse\n"
        "from hubextrap.methods import coefficients\n"
        "coefficients('two_point', [0, 1], 2)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_recipe_with_a_built_in_method_looks_through_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: str) -> None:
        pytest.fail("entry points were read")

    monkeypatch.setattr(registry, "entry_points", refuse)
    parse_recipe("{trajectory: {repo: run}, merge_method: ema, parameters: {target_step: 9}}")
