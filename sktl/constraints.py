"""What an estimator's parameters may be, in the words of scikit-learn's own errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from .messages import shown

_FLAGS: tuple[type, ...] = (bool, np.bool_)
_NAMES: dict[Any, str] = {Integral: "int", Real: "float"}


class InvalidParameterError(ValueError, TypeError):
    """A parameter is neither of a type nor of a value that it may have."""


class Options:
    """One of some values of a type.

    Parameters
    ----------
    kind : type
    options : iterable
    """

    def __init__(self, kind: type, options: Iterable[Any]) -> None:
        self.kind = kind
        self.options = frozenset(options)

    def allows(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return isinstance(value, self.kind) and value in self.options

    def __str__(self) -> str:
        return f"a {_name(self.kind)} among {{{', '.join(sorted(map(repr, self.options)))}}}"


class StrOptions(Options):
    """One of some strings."""

    def __init__(self, options: Iterable[str]) -> None:
        super().__init__(str, options)


class Interval:
    """A number between two bounds.

    Parameters
    ----------
    kind : type
        :class:`numbers.Integral` or :class:`numbers.Real`.
    left, right : float or None
        None is no bound.
    closed : {"left", "right", "both", "neither"}
        Which bounds belong to it.
    """

    def __init__(self, kind: Any, left: float | None, right: float | None, *, closed: str) -> None:
        self.kind = kind
        self.left = -math.inf if left is None else left
        self.right = math.inf if right is None else right
        self.with_left = closed in ("left", "both")
        self.with_right = closed in ("right", "both")

    def allows(self, value: Any) -> bool:
        """Whether the value is a number in it."""
        if not isinstance(value, self.kind) or isinstance(value, _FLAGS):  # True isn't 1 here
            return False
        after = value >= self.left if self.with_left else value > self.left
        before = value <= self.right if self.with_right else value < self.right
        return bool(after and before)

    def __str__(self) -> str:
        left, right = (str(b if self.kind is Integral else float(b)) for b in self._bounds())
        bounds = f"{'[' if self.with_left else '('}{left}, {right}{']' if self.with_right else ')'}"
        return f"{'an' if self.kind is Integral else 'a'} {_name(self.kind)} in the range {bounds}"

    def _bounds(self) -> tuple[float, float]:
        return self.left, self.right


class _Kind:
    """An object of a type, or of one of several that go by one name."""

    def __init__(self, kind: Any, name: str | None = None) -> None:
        self.kind = kind
        self.name = f"an instance of {_name(kind)!r}" if name is None else name

    def allows(self, value: Any) -> bool:
        flag = self.kind in (Integral, Real) and isinstance(value, _FLAGS)
        return isinstance(value, self.kind) and not flag

    def __str__(self) -> str:
        return self.name


class _Function:
    def allows(self, value: Any) -> bool:
        return callable(value)

    def __str__(self) -> str:
        return "a callable"


class _Seed:
    def allows(self, value: Any) -> bool:
        if isinstance(value, Integral) and not isinstance(value, _FLAGS):
            return 0 <= int(value) < 2**32
        return value is None or isinstance(value, np.random.RandomState)

    def __str__(self) -> str:
        return "an int in the range [0, 4294967295], a numpy.random.RandomState or None"


_Constraint = Options | Interval | _Kind | _Function | _Seed


def check_parameters(
    parameters: Mapping[str, Any], constraints: Mapping[str, list[Any]], owner: str
) -> None:
    """Check that each parameter is something that it may be.

    Parameters
    ----------
    parameters : dict of str to object
    constraints : dict of str to list
        What each may be: a type, None, `callable`, "boolean", "verbose", "random_state",
        :class:`Options` or :class:`Interval`.
    owner : str
        The class that has them, for the error.

    Raises
    ------
    InvalidParameterError
    """
    for name, value in parameters.items():
        if name not in constraints:
            continue
        if meets(value, constraints[name]):
            continue
        wanted = described(constraints[name])
        raise InvalidParameterError(
            f"The {name!r} parameter of {owner} must be {wanted}. Got {shown(value)} instead."
        )


def meets(value: Any, constraints: list[Any]) -> bool:
    """Whether a value is something that it may be; see :func:`check_parameters`."""
    return any(_constraint(one).allows(value) for one in constraints)


def described(constraints: list[Any]) -> str:
    """What a value may be, in words."""
    *most, last = (str(_constraint(one)) for one in constraints)
    return f"{', '.join(most)} or {last}" if most else last


def _constraint(given: Any) -> _Constraint:
    if isinstance(given, Options | Interval):
        return given
    if given is callable:
        return _Function()
    if given is None:
        return _Kind(type(None), "None")
    if given == "boolean":
        return _Kind(_FLAGS, f"an instance of 'bool' or an instance of {_name(np.bool_)!r}")
    if given == "verbose":
        return _Kind((Integral, *_FLAGS), "an int or a bool")
    return _Seed() if given == "random_state" else _Kind(given)


def _name(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    builtin = kind.__module__ == "builtins"
    return str(kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}")
