"""``.casignore``: what of a directory is not pushed, in .gitignore's syntax.

Rule: pure but for the reading of the file.  As with git, a file holds for its directory and
below, a deeper one beats a higher one, a later line an earlier one, and nothing below an
ignored directory is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import pathspec

from cas.errors import InvalidArgument

NAME = ".casignore"


@dataclass(frozen=True, slots=True)
class Ignore:
    """The rules that hold in one directory: outermost first, each with the names that lead
    from the tree's root to where it is."""

    rules: tuple[tuple[int, pathspec.GitIgnoreSpec], ...] = ()

    def within(self, depth: int, text: str, where: str) -> Ignore:
        """These, and what the directory's own file says; `depth` names lead to it."""
        try:
            spec = pathspec.GitIgnoreSpec.from_lines(text.splitlines())
        except ValueError as error:
            raise InvalidArgument(f"{where}: {error}") from None
        return Ignore((*self.rules, (depth, spec)))

    def ignores(self, path: tuple[str, ...], folder: bool) -> bool:
        """Whether the entry at `path` (names from the tree's root) is left out."""
        for depth, spec in reversed(self.rules):
            name = "/".join(path[depth:]) + "/" * folder
            include = spec.check_file(name).include
            if include is not None:
                return include
        return False
