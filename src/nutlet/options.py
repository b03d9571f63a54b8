"""Options of methods, attacks and settings: what each may be is declared once, in the annotation beside it.

For example::

    ratio: Annotated[float, Range(0, 1, right_open=True, noun="a share")] = 0.5

From that declaration come the validation (:func:`check_options`), what lists and docs say (:func:`options_of`), and the
JSON Schema of the files that hold options (:func:`schema`). Only what relates options to each other is checked by hand.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from nutlet.errors import ConfigError, nearest, shown
from nutlet.functions import NAME, Named, find
from nutlet.ranges import Range

__all__ = [
    "BelowOne",
    "Count",
    "Hidden",
    "LearningRate",
    "OpenShare",
    "Option",
    "Positive",
    "Range",
    "Seed",
    "Share",
    "UpToOne",
    "Validated",
    "Weight",
    "check_names",
    "check_options",
    "check_value",
    "options_of",
    "schema",
]

T = TypeVar("T")


class Hidden:
    """Marks, within ``Annotated``, an option whose value no message shows: it may hold a secret."""


Count = Annotated[int, Range(1)]
"""How many of something: 1 or more."""
Seed = Annotated[int, Range(0, 2**32, right_open=True)]
"""What seeds every generator: NumPy takes no negative number."""
Share = Annotated[float, Range(0, 1, noun="a share")]
BelowOne = Annotated[float, Range(0, 1, right_open=True, noun="a share")]
"""A share that is not all."""
UpToOne = Annotated[float, Range(0, 1, left_open=True, noun="a share")]
"""A share that is not nothing."""
OpenShare = Annotated[float, Range(0, 1, left_open=True, right_open=True, noun="a share")]
Positive = Annotated[float, Range(0, left_open=True)]
LearningRate = Annotated[float, Range(0, 100, left_open=True, right_open=True, noun="a learning rate")]
Weight = Annotated[float, Range(0, noun="a finite weight")]
"""Factor of a term of a loss; 0 leaves the term out."""


@dataclass(frozen=True)
class Option:
    """One option of a class.

    Args:
        name: of the field.
        hint: its annotation, resolved, with what ``Annotated`` adds.
        default: its default; MISSING where it has to be given.
    """

    name: str
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is dataclasses.MISSING

    @property
    def expected(self) -> str:
        """What it may be, in words, as messages say it."""
        return _expected(self.hint)

    @property
    def range(self) -> Range | None:
        """The first range in its annotation."""
        return _range(self.hint)


def options_of(kind: type) -> dict[str, Option]:
    """Return the options of a dataclass by name, in order.

    >>> @dataclass
    ... class Prune:
    ...     ratio: Annotated[float, Range(0, 1)] = 0.5
    >>> options_of(Prune)["ratio"].expected
    'a number from 0 to 1'
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        option.name: Option(option.name, hints[option.name], _default(option)) for option in dataclasses.fields(kind)
    }


class _ByName(type):
    """Says of a wrong call what YAML with the same mistake is told, not what Python says of a signature."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError:
            try:
                made = next(vars(kind)["__init__"] for kind in cls.__mro__ if "__init__" in vars(kind))
                inspect.signature(made).bind(None, *args, **kwargs)
            except TypeError:
                check_names(cls, kwargs, positional=len(args))
            raise


@dataclass(frozen=True, eq=False)
class Validated(metaclass=_ByName):
    """Base of frozen dataclasses that check their options when they are made, those of all bases at once."""

    def __post_init__(self) -> None:
        """Check each option against its annotation; subclasses extend this to check what options say together."""
        check_options(self)


def check_options(instance: Any, owner: str | None = None) -> None:
    """Make tuples of lists, as JSON, YAML and people write them, functions of names, and check each option.

    Args:
        instance: of a dataclass, frozen or not.
        owner: in whose name messages speak; by default the class.

    Raises:
        ConfigError: a value is of another type or out of range. Numbers have to be finite: NaN would pass every
            comparison that means to refuse it.
    """
    owner = owner or type(instance).__name__
    for name, option in options_of(type(instance)).items():
        value = getattr(instance, name)
        if isinstance(value, list) and _fits(tuple(value), option.hint):
            object.__setattr__(instance, name, tuple(value))
            continue
        if isinstance(value, str) and _named(option.hint) and (function := find(value)) is not None:
            object.__setattr__(instance, name, function)
        else:
            check_value(f"{owner}.{name}", value, option.hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError, which speaks of ``name``, unless ``value`` fits the annotation ``hint``."""
    if _fits(value, hint):
        return
    kind = type(value).__name__
    if typing.get_origin(hint) is Annotated and Hidden in typing.get_args(hint):
        found = f"a {kind}"
    elif _fits(value, _bare(hint)):  # to name the right type would only distract
        found = shown(value)
    else:
        found = f"{shown(value)} ({kind})"
    raise ConfigError(f"{name} is {found}; expected {_expected(hint)}")


def check_names(kind: type, given: Mapping[str, Any], *, positional: int = 0, see: str = "") -> None:
    """Check that options of a dataclass exist and that none is missing.

    Args:
        kind: the dataclass.
        given: options by name.
        positional: how many values were given without a name, for the first options.
        see: where to read more, for the message.

    Raises:
        ConfigError: there is no such option (the nearest name is suggested), or one is missing.
    """
    name, options = kind.__name__, options_of(kind)
    for option in given:
        if option not in options:
            raise ConfigError(
                f"{name} has no option {shown(option)}; "
                + (nearest(str(option), options) if options else "expected none: it takes no options")
            )
    if positional and all(field.kw_only for field in dataclasses.fields(kind)):
        first = next(iter(options), "option")
        raise ConfigError(f"{name} got {positional} values without names; expected names, as {name}({first}=...)")
    missing = [o.name for o in list(options.values())[positional:] if o.required and o.name not in given]
    if missing:
        wanted = options[missing[0]].expected
        raise ConfigError(f"{name} needs the option {missing[0]!r}; expected {wanted}{see}")


def schema(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of the options of a dataclass: an object with one property for each but functions.

    >>> @dataclass
    ... class Prune:
    ...     ratio: Annotated[float, Range(0, 1)] = 0.5
    >>> schema(Prune)["properties"]
    {'ratio': {'type': 'number', 'minimum': 0, 'maximum': 1, 'default': 0.5}}
    """
    functions = collections.abc.Callable
    options = [option for option in options_of(kind).values() if typing.get_origin(option.hint) is not functions]
    properties = {
        option.name: _schema(option.hint) | ({} if option.required else {"default": _plain(option.default)})
        for option in options
    }
    required = [option.name for option in options if option.required]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _default(option: dataclasses.Field[Any]) -> Any:
    made = option.default_factory
    return option.default if made is dataclasses.MISSING else made()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def _arguments(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _split(hint: Any) -> tuple[Any, Range | None]:
    """Return an annotation without what ``Annotated`` adds, and the range among that."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None
    bare, *extras = typing.get_args(hint)
    return bare, next((extra for extra in extras if isinstance(extra, Range)), None)


def _range(hint: Any) -> Range | None:
    for choice in _arguments(hint):
        if (found := _split(choice)[1]) is not None:
            return found
    return None


def _named(hint: Any) -> Named | None:
    """Return what an annotation says of functions that have a name."""
    for choice in _arguments(hint):
        if typing.get_origin(choice) is Annotated:
            for extra in typing.get_args(choice)[1:]:
                if isinstance(extra, Named):
                    return extra
    return None


def _bare(hint: Any) -> Any:
    """Return an annotation without its ranges, inside tuples and unions too."""
    hint = _split(hint)[0]
    if len(choices := _arguments(hint)) > 1:
        return typing.Union[tuple(map(_bare, choices))]  # noqa: UP007  of members that are known here only
    if typing.get_origin(hint) is tuple:
        return tuple[_bare(typing.get_args(hint)[0]), ...]  # type: ignore[misc]
    return hint


def _fits(value: Any, hint: Any) -> bool:
    if len(_arguments(hint)) == 1 and (named := _named(hint)) is not None:
        return value in named
    hint, bounds = _split(hint)
    if bounds is not None:
        return _fits(value, hint) and value in bounds
    if len(choices := _arguments(hint)) > 1:
        return any(_fits(value, choice) for choice in choices)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if origin is None else origin)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    type(None): "none",
}


def _expected(hint: Any) -> str:
    if len(_arguments(hint)) == 1 and (named := _named(hint)) is not None:
        return named.described
    hint, bounds = _split(hint)
    if bounds is not None:
        # Two bounds leave out infinity by themselves.
        finite = bounds.low is not None and bounds.high is not None
        return bounds.described("a number" if finite and hint is float else _WORDS[hint])
    if len(choices := _arguments(hint)) > 1:
        return " or ".join(map(_expected, choices))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a list, each entry {_expected(arguments[0])}"
    if origin is collections.abc.Mapping:
        return "a mapping of name to value"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


_TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def _schema(hint: Any) -> dict[str, Any]:
    if len(_arguments(hint)) == 1 and _named(hint) is not None:
        return {"type": "string", "pattern": NAME}
    hint, bounds = _split(hint)
    if bounds is not None:
        return _schema(hint) | bounds.schema()
    if len(choices := _arguments(hint)) > 1:
        return {"anyOf": list(map(_schema, choices))}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is collections.abc.Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    return schema(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {}
