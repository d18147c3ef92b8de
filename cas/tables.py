"""Options that are tables of TOML: ``[[access]]`` and ``[[jwt]]``.

Rule: pure; as `cas.options`, for values that neither a flag nor a variable could hold.  A table
is declared by its keys, each read by a `Kind`; everything wrong is a ConfigError of one line
that names the place, the value and what was expected.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from cas.access.roles import ROLES, Role, Rule
from cas.access.settings import ALGORITHMS, JwtSettings
from cas.errors import ConfigError
from cas.options import Kind, seconds

T = TypeVar("T")

Claims = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Tables(Generic[T]):
    """An array of tables under one name, each of which makes one value."""

    name: str
    make: Callable[..., T]
    """Takes what the keys say by their names; its defaults are those of keys that are absent."""
    keys: Mapping[str, Kind[Any]]
    required: tuple[str, ...]

    def read(self, place: str, value: Any) -> tuple[T, ...]:
        """Reads what TOML has under `name`; `place` is the file.  Raises ConfigError."""
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise ConfigError(f"{place}: {self.name} is not a list of tables: [[{self.name}]]")
        return tuple(
            self._read(f"{place}: [[{self.name}]] number {number}", table)
            for number, table in enumerate(value, 1)
        )

    def _read(self, place: str, table: Mapping[str, Any]) -> T:
        values = {}
        for key, value in table.items():
            kind = self.keys.get(key)
            if kind is None:
                close = difflib.get_close_matches(key, list(self.keys), n=1, cutoff=0.7)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"{place}: unknown key {key!r}{hint}")
            try:
                values[key] = kind.from_toml(value)
            except ValueError:
                raise ConfigError(f"{place}: {key}: {value!r} is not {kind.expected}") from None
        for key in self.required:
            if key not in values:
                raise ConfigError(f"{place}: {key} is missing; expected {self.keys[key].expected}")
        return self.make(**values)

    def to_text(self, values: tuple[T, ...]) -> str:
        """`values` as text that `from_text` reads, for another process."""
        return json.dumps(
            [
                {key: kind.to_text(getattr(value, key)) for key, kind in self.keys.items()}
                for value in values
            ]
        )

    def from_text(self, text: str) -> tuple[T, ...]:
        return tuple(
            self.make(**{key: kind.from_text(table[key]) for key, kind in self.keys.items()})
            for table in json.loads(text)
        )


def _kind(
    expected: str, from_toml: Callable[[Any], T], *, plain: Callable[[T], Any] = lambda v: v
) -> Kind[T]:
    """A kind whose text is JSON; `plain` makes of a value what `from_toml` reads."""
    return Kind(
        expected,
        "",
        lambda text: from_toml(json.loads(text)),
        from_toml,
        lambda value: json.dumps(plain(value)),
    )


def _text(pattern: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or not re.match(pattern, value):
            raise ValueError(value)
        return value

    return read


def _texts(read: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    def read_all(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError(value)
        return tuple(read(item) for item in items)

    return read_all


def _role(value: Any) -> Role:
    if not isinstance(value, str) or value not in ROLES:
        raise ValueError(value)
    return ROLES[value]


def _algorithm(value: Any) -> str:
    if value not in ALGORITHMS:
        raise ValueError(value)
    return str(value)


_patterns = _texts(_text(""))


def _claims(value: Any) -> Claims:
    if not isinstance(value, dict):
        raise ValueError(value)
    return tuple((_text(".")(name), _patterns(patterns)) for name, patterns in value.items())


TEXT: Final = _kind("text", _text("."))
PATTERN: Final = _kind("text, where * is any characters", _text(""))
CLAIM: Final = _kind("a claim's name", _text(""))
NAME: Final = _kind(
    "a name: a letter, then letters, digits, dots or dashes", _text(r"[A-Za-z][A-Za-z0-9.-]*\Z")
)

ACCESS: Final = Tables(
    "access",
    Rule,
    {
        "role": _kind(f"one of {', '.join(ROLES)}", _role, plain=lambda role: role.label),
        "principal": PATTERN,
        "instance": PATTERN,
        "claims": _kind(
            'a table of claims, each with a pattern or a list of them: { ref = "refs/tags/*" }',
            _claims,
            plain=lambda claims: {name: list(patterns) for name, patterns in claims},
        ),
    },
    ("role",),
)

JWT: Final = Tables(
    "jwt",
    JwtSettings,
    {
        "name": NAME,
        "issuer": TEXT,
        "audience": _kind("text, or a list of it", _texts(_text("."))),
        "jwks": _kind("a path or an https URL", _text(".")),
        "algorithms": _kind(f"a list of {', '.join(ALGORITHMS)}", _texts(_algorithm)),
        "leeway": seconds(0, 3_600),
        "principal_claim": TEXT,
        "role_claim": CLAIM,
        "instance_claim": CLAIM,
    },
    ("issuer", "audience", "jwks"),
)
