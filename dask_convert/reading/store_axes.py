"""The two axes of a store: names and annotations, read when they are first needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dask_convert.errors import SelectionError, StoreError
from dask_convert.reading.gene_names import Names
from dask_convert.reading.obs_rows import obs_rows

if TYPE_CHECKING:
    import zarr
    from numpy.typing import ArrayLike, NDArray


class Axis:
    """One axis of a store: ``obs``, ``var`` or ``raw/var``.

    Parameters
    ----------
    root
        The store.
    name
        Path of its data frame.
    """

    def __init__(self, root: zarr.Group, name: str) -> None:
        self._root = root
        self._name = name

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All its annotations."""
        frame: pd.DataFrame = element(self._root, self._name)
        return frame

    @cached_property
    def names(self) -> pd.Index:
        """Its names, without the other columns."""
        return pd.Index(element(self._root, self._index_path))

    @cached_property
    def length(self) -> int:
        """How many there are."""
        return int(self._index.shape[0]) if self._index_is_array else len(self.names)

    def column(self, column: str) -> pd.Series:
        """One annotation.

        Raises
        ------
        SelectionError
            There is no such column.
        """
        if column not in self.frame.columns:
            there = ", ".join(map(str, self.frame.columns)) or "none"
            msg = f"{self._name} has no column {column!r}; there are: {there}"
            raise SelectionError(msg)
        return self.frame[column]

    def labels(self, column: str | None) -> pd.Index:
        """A column whose values can be names; the names proper for None.

        Raises
        ------
        SelectionError
            There is no such column, or its values are neither words nor integers.
        """
        if column is None:
            return self.names
        values = self.column(column)
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.cat.categories.dtype)
        if values.dtype.kind in "bfcmM":
            msg = f"{self._name}: {column!r} is {values.dtype}; names are words or integers"
            raise SelectionError(msg)
        return pd.Index(values if values.dtype.kind in "iu" else values.astype(object))

    def finder(self, axis: str, column: str | None = None) -> Names:
        """What finds positions by names.

        Parameters
        ----------
        axis
            What is named, for messages: ``gene`` or ``obs``.
        column
            That has the names; None for the names proper.
        """
        proper = f"{self._name.rpartition('/')[2]} name"

        def others() -> dict[str, pd.Index]:
            if column is not None:
                return {proper: self.names}
            words = self.frame.select_dtypes(exclude=["number", "bool"]).columns
            return {name: pd.Index(self.frame[name].astype(object)) for name in words}

        if column is None and self._index_is_array:
            numbers = self._index.dtype.kind in "iu"
            return Names(
                lambda: self.names,
                self.length,
                numbers=numbers,
                label=proper,
                axis=axis,
                others=others,
            )
        labels = self.labels(column)
        return Names(
            lambda: labels,
            len(labels),
            numbers=labels.dtype.kind in "iu",
            label=column or proper,
            axis=axis,
            others=others,
        )

    @cached_property
    def _index(self) -> Any:
        """What its names are stored in."""
        return self._root[self._index_path]

    @property
    def _index_is_array(self) -> bool:
        """Whether that is one array; a nullable or categorical index is a group of several."""
        return hasattr(self._index, "shape")

    @property
    def _index_path(self) -> str:
        group = self._root.get(self._name)
        key = None if group is None else group.attrs.get("_index")
        if key is None:
            msg = f"{self._root.store_path}: {self._name} is no data frame of AnnData"
            raise StoreError(msg)
        return f"{self._name}/{key}"


class Axes:
    """The axes of a store and of its ``raw``.

    Parameters
    ----------
    root
        The store.
    """

    def __init__(self, root: zarr.Group) -> None:
        self.obs = Axis(root, "obs")
        self.var = Axis(root, "var")
        self._raw_var = Axis(root, "raw/var")
        self._finders: dict[tuple[str, str | None], Names] = {}

    def var_of(self, matrix: str) -> Axis:
        """The genes of a matrix."""
        return self._raw_var if matrix == "raw/X" else self.var

    def genes(self, matrix: str, column: str | None) -> Names:
        """What finds the genes of a matrix; made once, since it keeps a hash table."""
        key = ("raw" if matrix == "raw/X" else "", column)
        if key not in self._finders:
            self._finders[key] = self.var_of(matrix).finder("gene", column)
        return self._finders[key]

    def rows(self, obs: Any) -> NDArray[np.int64] | None:
        """Which obs are meant; see `dask_convert.reading.obs_rows`."""
        return obs_rows(obs, lambda: self.obs.finder("obs"), lambda: self.obs.frame)

    def labels(
        self,
        rows: NDArray[np.int64] | None,
        columns: NDArray[np.int64],
        matrix: str,
        column: str | None,
    ) -> tuple[pd.Index, pd.Index]:
        """Names of some obs and some genes."""
        names = self.obs.names
        return (names if rows is None else names[rows]), self.var_of(matrix).labels(column)[columns]

    def group_labels(self, groupby: str | ArrayLike | None) -> pd.Series:
        """One label per obs: a column's, those given, or the same for all.

        Raises
        ------
        SelectionError
            There is no such column, or there are not as many labels as obs.
        """
        if groupby is None:
            return pd.Series(np.zeros(self.obs.length, np.int64), name="all")
        if isinstance(groupby, str):
            return self.obs.column(groupby)
        labels = pd.Series(groupby)
        if len(labels) != self.obs.length:
            msg = f"{len(labels):,} labels to group {self.obs.length:,} obs by"
            raise SelectionError(msg)
        if isinstance(groupby, pd.Series) and not (
            labels.index.equals(self.obs.names) or isinstance(labels.index, pd.RangeIndex)
        ):
            msg = "the index of the labels is not that of the store's obs; align it"
            raise SelectionError(msg)
        return labels.reset_index(drop=True)


def element(root: zarr.Group, name: str) -> Any:
    """An element of the store, by anndata.

    Raises
    ------
    StoreError
        anndata cannot read it.
    """
    import anndata

    try:
        return anndata.io.read_elem(root[name] if name else root)
    except Exception as error:  # anndata wraps those of every storage and codec
        msg = f"{root.store_path}: {name or 'the store'} cannot be read: {error}"
        raise StoreError(msg) from error
