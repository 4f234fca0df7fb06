"""From the names in a configuration to the things that they stand for.

Each kind of thing that a configuration or an option names (models, data sets, schemes, selectors)
has one :class:`Registry`; :mod:`mest_fed.catalogue` lists them. What is registered is what the
configuration allows. Beside a registered name, ``package.module:attribute`` and
``file.py:attribute`` stand for things of a user's own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from mest_fed.described import described, kind_of
from mest_fed.errors import InputError, MestFedError, OwnThingError, not_allowed
from mest_fed.references import REFERENCES, absolute_reference, is_reference, reference_of, resolve

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Mapping[str, T], Generic[T]):
    """The things of one kind, by name: functions or classes, whose calls make what is used.

    Parameters
    ----------
    key : str
        The configuration key or option that names such a thing, for error messages.
    builtin : mapping of str to str
        Name -> reference. A reference is imported when the thing is asked for, so that a name can
        be checked where the library behind the thing is not installed.
    called : str
        How a thing is called, for people: the arguments that it may take.
    makes : str
        Reference to the class of what a thing makes, checked by :meth:`build`; empty where the
        caller checks.
    with_argument : mapping of str to str
        Names with an argument, such as ``block:ROWS`` -> reference to a function that returns the
        thing for an argument's text.

    Examples
    --------
    ::

        @SELECTORS.register("by-battery")
        class ByBattery(Selector): ...

        SELECTORS.build("by-battery")
        SELECTORS.build("my_selectors.py:ByBattery")
    """

    def __init__(
        self,
        key: str,
        builtin: Mapping[str, str],
        *,
        called: str = "",
        makes: str = "",
        with_argument: Mapping[str, str] | None = None,
    ) -> None:
        self.key = key
        self.references = dict(builtin)
        self.called = called
        self.makes = makes
        self._with_argument = {
            name.partition(":")[0]: (name, reference)
            for name, reference in (with_argument or {}).items()
        }
        self._registered: dict[str, T] = {}
        self._found: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        yield from self.references
        yield from self._registered

    def __len__(self) -> int:
        return len(self.references) + len(self._registered)

    def __contains__(self, name: object) -> bool:
        return name in self.references or name in self._registered

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    @property
    def names(self) -> list[str]:
        """All names, those with an argument as people read them, such as ``block:ROWS``."""
        return [*self, *(name for name, _ in self._with_argument.values())]

    @property
    def allowed(self) -> str:
        """What a name may be, for people: all names, and the two forms of a reference."""
        return ", ".join([*self.names, *REFERENCES])

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a thing under a name.

        Raises
        ------
        ValueError
            If another thing has the name, or the name contains a colon.
        """

        def keep(thing: T) -> T:
            before = self._registered.get(name)
            again = before is thing or _is_reloaded(before, thing)
            if name in self.references or ":" in name or (before is not None and not again):
                raise ValueError(f"{self.key}: the name {name!r} is taken or contains a colon")
            self._registered[name] = thing
            return thing

        return keep

    def check(self, name: str, folder: Path | None = None) -> str:
        """Check the form of a name and return the name under which any process finds the thing.

        Nothing is imported. A relative path becomes absolute, and a name that was registered in
        this process becomes a reference, if one leads to the thing.

        Parameters
        ----------
        name : str
            A registered name or a reference.
        folder : Path, optional
            What the path of a file is relative to; the current folder by default.

        Raises
        ------
        InputError
            If it is neither.
        """
        if name in self._registered:
            return reference_of(self._registered[name]) or name
        if name in self.references:
            return name
        if self._argument(name) is not None:
            self._with_its_argument(name)
            return name
        if not is_reference(name):
            raise not_allowed(self.key, name, self.allowed)
        return absolute_reference(name, folder)

    def find(self, name: str) -> T:
        """Return the thing that a name or a reference stands for.

        Raises
        ------
        InputError
            If there is none, or it is no function or class.
        """
        if name in self._registered:
            return self._registered[name]
        if name not in self._found:
            self._found[name] = self._resolve(self.check(name))
        return self._found[name]

    def takes(self, name: str, option: str) -> bool:
        """Say whether the thing that a name stands for has a parameter of that name."""
        return option in inspect.signature(self.find(name)).parameters

    def is_builtin(self, name: str) -> bool:
        """Say whether a name is one of this package's own things."""
        return name in self.references or self._argument(name) is not None

    def build(self, name: str, *args: object, **options: object) -> Any:
        """Call what a name stands for, and return what it makes.

        A thing may have fewer parameters: it gets the first of the arguments, and the options that
        it names.

        Raises
        ------
        InputError
            If there is no such thing, a thing of a user's own raises, or it makes something else
            than it should.
        """
        return self.call(name, self.find(name), *args, **options)

    def call(
        self, name: str, function: Callable[..., Any], *args: object, **options: object
    ) -> Any:
        """Call a function of the thing that has a name, as :meth:`build` does."""
        with self.naming(name):
            args, options = accepted(function, args, options)
            made = function(*args, **options)
        if self.makes and not isinstance(made, self._made):
            raise InputError(
                f"{self.key} = {name!r} gives {kind_of(made)}; "
                f"allowed: what gives a {self.makes.replace(':', '.')}"
            )
        return made

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Have whatever a user's own thing raises name the key and the thing.

        Raises
        ------
        OwnThingError
            In place of what code in the block raises; that of this package stays what it is.
        """
        try:
            yield
        except MestFedError:
            raise
        except (Exception, SystemExit) as error:  # a user's code may end the process
            if self.is_builtin(name):
                raise
            raise OwnThingError(f"{self.key} = {name!r}: {described(error)}") from error

    @cached_property
    def _made(self) -> type:
        made = resolve(self.makes)
        assert isinstance(made, type)
        return made

    def _argument(self, name: str) -> tuple[str, str] | None:
        """Return (reference, argument) of a name such as ``block:8``, None for other names."""
        head, colon, argument = name.partition(":")
        if not colon or head not in self._with_argument:
            return None
        return self._with_argument[head][1], argument

    def _with_its_argument(self, name: str) -> T:
        """Return the thing of a name such as ``block:8``; InputError if the argument is wrong."""
        parts = self._argument(name)
        assert parts is not None
        of_argument = cast(Callable[[str], T], resolve(parts[0]))
        return of_argument(parts[1])

    def _resolve(self, name: str) -> T:
        """Return what a checked name stands for."""
        try:
            if self._argument(name) is not None:
                return self._with_its_argument(name)
            thing = resolve(self.references.get(name, name))
        except InputError as error:
            raise InputError(f"{self.key} = {name!r}: {error}") from error.__cause__
        if not callable(thing):
            raise InputError(
                f"{self.key} = {name!r} is {kind_of(thing)}; allowed: a function or class"
            )
        return cast(T, thing)


def share_of(key: str, name: str, text: str) -> float:
    """Read the argument of a name with a share, such as ``topk:0.01``.

    Raises
    ------
    InputError
        If it is no number above 0 and up to 1.
    """
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise not_allowed(key, f"{name}:{text}", f"{name}:NUMBER with a number in (0, 1]")
    return share


def accepted(
    function: Callable[..., Any], args: tuple[object, ...], options: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments that a function takes: the first ones, and options by their names."""
    made: Any = function
    plain: Any = object
    if isinstance(made, type) and all(
        getattr(made, name) is getattr(plain, name) for name in ("__init__", "__new__")
    ):
        return (), {}  # else inspect parses a text, which takes half a megabyte
    try:
        parameters = _parameters(function)
    except ValueError:  # a function of C that does not say
        return args, dict(options)
    kinds = {parameter.kind for parameter in parameters}
    by_place = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        args = args[: len(by_place)]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return args, dict(options)
    named = {*by_place[len(args) :]} | {
        parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    }
    return args, {name: value for name, value in options.items() if name in named}


def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a function, which are read once where it can be told apart."""
    try:
        return _read_parameters(function)
    except TypeError:  # no hash
        return tuple(inspect.signature(function).parameters.values())


@lru_cache(maxsize=256)
def _read_parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def _is_reloaded(before: object, after: object) -> bool:
    """Say whether two things are one of a module that was executed again."""
    return reference_of(before) == reference_of(after) != ""
