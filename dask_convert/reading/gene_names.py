"""From what users say to positions: names, numbers, slices, lists, masks.

Written once for both axes: genes are chosen by it, and obs where they are named.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dask_convert.errors import AmbiguousNameError, SelectionError, UnknownNameError

_SHOWN = 5


class Names:
    """The names of one axis, and how to find positions by them.

    Who asks by position does not wait for names: those are read when a key needs them.

    Parameters
    ----------
    load
        Gives the names, one per position; those that are missing (NaN) name nothing.
    length
        How many there are.
    numbers
        Whether names are integers: then integers are names and not positions.
    label
        What they are, for messages: ``var name`` or ``gene_symbol``.
    axis
        What they name: ``gene`` or ``obs``.
    others
        Gives other labels and their names, to point out what a wrong name could mean.
    """

    def __init__(
        self,
        load: Callable[[], pd.Index],
        length: int,
        *,
        numbers: bool,
        label: str,
        axis: str,
        others: Callable[[], dict[str, pd.Index]] = dict,
    ) -> None:
        self._load = load
        self._length = length
        self._numbers = numbers
        self._label = label
        self._axis = axis
        self._others = others

    @cached_property
    def _names(self) -> pd.Index:
        return self._load()

    def __len__(self) -> int:
        return self._length

    def positions(self, key: Any) -> NDArray[np.int64]:
        """The positions that a key stands for.

        Parameters
        ----------
        key
            A name, a position (negative from the end), a slice of positions, a boolean mask, or
            a list or array of names or positions.

        Raises
        ------
        UnknownNameError, AmbiguousNameError
            A name names nothing, or several.
        SelectionError
            A position is out of range, a mask has another length, or the key is of no kind that
            is known.
        """
        if isinstance(key, slice):
            return self._of_slice(key)
        if isinstance(key, str | int | np.generic):
            return np.array([self._of_one(key)], np.int64)
        items = self._as_array(key)
        if items.dtype.kind == "b":
            return np.flatnonzero(self._mask(items, key))
        if items.dtype.kind in "iu" and not self._numbers:
            return self._in_range(items)
        return np.array([self._of_one(item) for item in items.tolist()], np.int64)

    def _of_slice(self, key: slice) -> NDArray[np.int64]:
        try:
            return np.arange(len(self), dtype=np.int64)[key]
        except (TypeError, ValueError) as error:
            msg = f"{key}: a slice goes by position; name what you want in a list instead"
            raise SelectionError(msg) from error

    def _of_one(self, item: Any) -> int:
        """The position of one name or number."""
        kind = _kind(item)
        if kind == "position" and not self._numbers:
            return int(self._in_range(np.array([item]))[0])
        if kind not in {"name", "position"}:
            msg = f"{item!r} is neither the {self._label} nor the position of a {self._axis}"
            raise SelectionError(msg)
        if self._numbers and isinstance(item, str) and item.isdecimal():
            item = int(item)  # as command lines hand over numbers
        try:
            place = self._names.get_loc(item)
        except KeyError:
            raise self._unknown(item) from None
        if isinstance(place, int | np.integer):
            return int(place)
        raise self._ambiguous(item, np.arange(len(self))[place])

    def _in_range(self, items: NDArray[Any]) -> NDArray[np.int64]:
        items = items.astype(np.int64)
        wrong = (items < -len(self)) | (items >= len(self))
        if wrong.any():
            msg = f"position {items[wrong][0]:,}: there are {len(self):,} {self._axis} positions"
            raise SelectionError(msg)
        return np.where(items < 0, items + len(self), items)

    def _mask(self, mask: NDArray[Any], key: Any) -> NDArray[np.bool]:
        if mask.size != len(self):
            msg = f"a mask of {mask.size:,} for {len(self):,} positions of {self._axis}"
            raise SelectionError(msg)
        if isinstance(key, pd.Series) and self._label.endswith(" name"):
            ordered = key.index.equals(self._names) or isinstance(key.index, pd.RangeIndex)
            if not ordered:
                msg = f"the index of the mask is not that of the store's {self._axis}; align it"
                raise SelectionError(msg)
        return mask.astype(bool)

    def _as_array(self, key: Any) -> NDArray[Any]:
        """A list-like key as an array of booleans, integers or names."""
        if isinstance(key, tuple):
            msg = f"{key!r}: give a list, or both axes by read(genes, obs=...)"
            raise SelectionError(msg)
        if isinstance(key, np.ndarray | pd.Series | pd.Index) and key.dtype.kind in "biu":
            items = np.asarray(key)
        else:
            items = np.empty(len(listed := list(_items(key))), object)
            items[:] = listed
        if items.ndim != 1:
            msg = f"a key of {items.ndim} axes; one is meant"
            raise SelectionError(msg)
        if items.dtype.kind in "biu":
            return items
        kinds = {_kind(item) for item in items}
        if kinds - {"name"} and (len(kinds) > 1 or kinds == {"other"}):
            msg = f"a list has names, or positions, or booleans, of one kind; here: {_few(items)}"
            raise SelectionError(msg)
        return items.astype({"mask": bool, "name": object}.get(next(iter(kinds), ""), np.int64))

    def _unknown(self, name: Any) -> UnknownNameError:
        near = _near(str(name), [str(item) for item in self._names.dropna()])
        text = f"no {self._axis} has the {self._label} {name!r}"
        if near:
            text += f"; near it: {', '.join(near)}"
        for label, names in self._others().items():
            if name in names:
                text += f"; it is in the column {label!r}"
        return UnknownNameError(text, tuple(near))

    def _ambiguous(self, name: Any, found: NDArray[np.int64]) -> AmbiguousNameError:
        others = self._others().get("var name")
        shown = [
            f"{others[at]} (position {at:,})" if others is not None else f"position {at:,}"
            for at in found[:_SHOWN].tolist()
        ]
        more = f" and {found.size - _SHOWN:,} more" if found.size > _SHOWN else ""
        text = (
            f"the {self._label} {name!r} stands for {found.size:,}: {', '.join(shown)}{more}; "
            f"choose one by {'var name or ' if others is not None else ''}position (from Python), "
            "or by the names of another column (--by)"
        )
        return AmbiguousNameError(text, tuple(found.tolist()))


def _items(key: Any) -> Iterator[Any]:
    try:
        return iter(key)
    except TypeError as error:
        msg = f"{key!r} is neither a name nor a position, slice, mask or list of them"
        raise SelectionError(msg) from error


def _kind(item: object) -> str:
    if isinstance(item, bool | np.bool):
        return "mask"
    if isinstance(item, int | np.integer):
        return "position"
    return "name" if isinstance(item, str) else "other"


def _near(name: str, names: list[str]) -> list[str]:
    """Names like the one that is not there: the same in other letter case, then similar ones."""
    same = [other for other in names if other.lower() == name.lower()]
    similar = difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.7)
    return list(dict.fromkeys([*same, *similar]))[:_SHOWN]


def _few(items: NDArray[Any]) -> str:
    return f"{items[:_SHOWN].tolist()!r}{' …' if items.size > _SHOWN else ''}"
