"""Where in a YAML text a value stands, so that a mistake can be shown with its line and column.

In: YAML text. Out: marks by path, duplicate keys. Pure. Raises `yaml.YAMLError` for what is no YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import yaml

Path = tuple[str | int, ...]


class Mark(NamedTuple):
    """Counted from 1, as editors do."""

    line: int
    column: int


class Marks:
    """The places of all keys and values of a document."""

    def __init__(self, text: str) -> None:
        self._places: dict[Path, Mark] = {}
        self.duplicates: list[tuple[Path, Mark]] = []
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            self._places[()] = _mark(root)
            self._walk(root, ())

    def of(self, path: Sequence[str | int]) -> Mark:
        """The place of a value, or of the nearest thing around it that is there."""
        found = tuple(path)
        while found and found not in self._places:
            found = found[:-1]
        return self._places.get(found, Mark(1, 1))

    def known(self, path: Sequence[str | int]) -> Path:
        """The longest beginning of a path that exists: pydantic adds names of union members."""
        kept: Path = ()
        for part in path:
            if (*kept, part) in self._places:
                kept = (*kept, part)
        return kept

    def _walk(self, node: yaml.Node, path: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else str(key.start_mark)
                inner = (*path, name)
                if inner in self._places:
                    self.duplicates.append((inner, _mark(key)))
                self._places[inner] = _mark(key)
                self._walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._places[(*path, index)] = _mark(item)
                self._walk(item, (*path, index))


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)
