"""A converted store as its readers see it: genes by name, in the form they want."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dask_convert.errors import SelectionError, StoreError
from dask_convert.reading.csc_reader import BLOCK_NNZ, CscReader, open_csc
from dask_convert.reading.result_kinds import Kind, as_sparse, assembled, check_kind
from dask_convert.reading.store_axes import Axes, element
from dask_convert.reading.store_opening import Place, open_root

if TYPE_CHECKING:
    from typing import Literal

    import anndata
    import zarr
    from distributed import Client
    from numpy.typing import ArrayLike, NDArray

    from dask_convert.reading.dask_columns import BlockKind


def open_store(
    place: Place,
    *,
    storage_options: dict[str, Any] | None = None,
    missing: Literal["error", "zeros"] = "error",
) -> Store:
    """Open an AnnData zarr store, whose matrices are CSC, to read genes from it.

    Reads the metadata and nothing else; names, ``indptr`` and indexes of shards are read when
    they are first needed, and kept. A store that is replaced has to be opened anew.

    Parameters
    ----------
    place
        A path, a ``file://`` URL, any URL that fsspec (or obstore) knows, or a store of
        zarr-python.
    storage_options
        For fsspec or obstore.
    missing
        What a chunk means that is not there. Stores of this tool have all of them, so that a
        missing one is an error. Other writers may leave out chunks of zeros.

    Raises
    ------
    StoreError
        There is no AnnData store.

    Examples
    --------
    >>> store = open_store("genes.zarr")  # doctest: +SKIP
    >>> store["Gad1"]  # doctest: +SKIP
    """
    if missing not in {"error", "zeros"}:
        msg = f"missing is {missing!r}; there are 'error' and 'zeros'"
        raise SelectionError(msg)
    return Store(open_root(place, storage_options), fill_missing=missing == "zeros")


class Store:
    """A store to read genes from; see `open_store`.

    Parameters
    ----------
    root
        The zarr group.
    fill_missing
        Take missing chunks for zeros.
    """

    def __init__(self, root: zarr.Group, *, fill_missing: bool = False) -> None:
        self.root = root
        self._fill_missing = fill_missing
        self._readers: dict[str, CscReader] = {}
        self._axes = Axes(root)

    def __repr__(self) -> str:
        n_obs, n_vars = self.shape
        matrices = ", ".join(self.matrices) or "none"
        return f"Store of {n_obs:,} obs × {n_vars:,} vars in {self.root.store_path}: {matrices}"

    def _repr_html_(self) -> str:
        from dask_convert.display.html import store_html

        return store_html(self)

    # ------------------------------------------------------------------ what there is

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices that are CSC, and so can be read gene by gene."""
        found: list[str] = []
        for name in self._elements():
            item = self.root.get(name)
            if item is not None and item.attrs.get("encoding-type") == "csc_matrix":
                found.append(name)
        return tuple(found)

    @property
    def obs(self) -> pd.DataFrame:
        """The annotations of obs."""
        return self._axes.obs.frame

    @property
    def var(self) -> pd.DataFrame:
        """The annotations of var."""
        return self._axes.var.frame

    @property
    def obs_names(self) -> pd.Index:
        """The names of obs, without the other columns."""
        return self._axes.obs.names

    @property
    def var_names(self) -> pd.Index:
        """The names of var, without the other columns."""
        return self._axes.var.names

    @property
    def shape(self) -> tuple[int, int]:
        """Number of obs and of vars."""
        return self.n_obs, self.n_vars

    @property
    def n_obs(self) -> int:
        """Number of obs."""
        return self._axes.obs.length

    @property
    def n_vars(self) -> int:
        """Number of vars."""
        return self._axes.var.length

    # ------------------------------------------------------------------ genes

    def __getitem__(self, genes: Any) -> Any:
        """Columns of ``X`` as a ``csc_array`` of shape (n_obs, columns); see `read`."""
        return self.read(genes)

    def by(self, column: str) -> GenesBy:
        """The same store with genes named by a column of var: ``by("symbol")["Gad1"]``.

        Raises
        ------
        SelectionError
            There is no such column, or its values are neither words nor integers.
        """
        return GenesBy(self, column)

    def read(
        self,
        genes: Any,
        *,
        obs: Any = None,
        kind: Kind = "csc",
        matrix: str = "X",
        by: str | None = None,
    ) -> Any:
        """Read genes.

        Neighbouring columns and chunks are read together, several at once. Beside the result,
        a read holds some chunks per thread, and with `obs` two million entries.

        Parameters
        ----------
        genes
            A name, a position, a slice of positions, a boolean mask, or a list or array of names
            or positions. The result has the columns in this order.
        obs
            Which obs: a mask, a list of names or positions, a slice, or a string, which is a
            query on the columns of obs such as ``"cell_type == 'B'"``.
        kind
            ``csc`` (``scipy.sparse.csc_array``), ``coo`` or ``gcxs`` (of ``sparse``), ``dense``
            (numpy), ``frame`` (pandas, with obs names and gene names). All have two axes.
        matrix
            ``X``, ``layers/NAME`` or ``raw/X``, whose genes are those of ``raw/var``.
        by
            The column of var that names genes; None for the names of var.

        Raises
        ------
        UnknownNameError, AmbiguousNameError
            A name names nothing, or several; the message has candidates.
        SelectionError
            A selection cannot be understood, or is out of range.
        DamagedStoreError
            A chunk is missing or fails its checksum.
        StoreError
            The matrix is not CSC, or the storage fails.
        """
        check_kind(kind)
        reader, names = self._reader(matrix), self._axes.genes(matrix, by)
        columns = names.positions(genes)
        rows = self._axes.rows(obs)
        n_rows = self.n_obs if rows is None else rows.size
        shape = (n_rows, columns.size)
        if rows is None and kind in {"csc", "coo", "gcxs"}:
            return as_sparse(reader.columns(columns), kind)
        parts = (reader.columns(part) for part in reader.parts(columns))
        chosen = parts if rows is None else (part[rows] for part in parts)
        result = assembled(chosen, shape, reader.dtype, kind)
        if kind != "frame":
            return result
        index, names_of_columns = self._axes.labels(rows, columns, matrix, by)
        return pd.DataFrame(result, index=index, columns=names_of_columns, copy=False)

    def labels(
        self, genes: Any, *, obs: Any = None, matrix: str = "X", by: str | None = None
    ) -> tuple[pd.Index, pd.Index]:
        """The names of obs and genes that `read` has its rows and columns by."""
        columns = self._axes.genes(matrix, by).positions(genes)
        return self._axes.labels(self._axes.rows(obs), columns, matrix, by)

    def blocks(
        self,
        *,
        obs: Any = None,
        kind: Kind = "csc",
        matrix: str = "X",
        block_nnz: int = BLOCK_NNZ,
    ) -> Iterator[tuple[slice, Any]]:
        """Yield all genes, block by block, each with the slice of positions that it covers.

        Parameters
        ----------
        obs, kind, matrix
            As for `read`.
        block_nnz
            Entries per block, rounded up to whole stored chunks; at least one gene.
        """
        check_kind(kind)
        rows = self._axes.rows(obs)
        for start, stop in self._reader(matrix).ranges(block_nnz):
            yield (
                slice(start, stop),
                self.read(slice(start, stop), obs=rows, kind=kind, matrix=matrix),
            )

    # ------------------------------------------------------------------ all of it

    def to_dask(
        self, matrix: str = "X", kind: BlockKind = "scipy", *, block_nnz: int = 4 * BLOCK_NNZ
    ) -> Any:
        """A matrix as a dask array, chunked by column ranges that follow the stored chunks.

        Parameters
        ----------
        matrix
            ``X``, ``layers/NAME`` or ``raw/X``.
        kind
            ``scipy``: blocks are ``csc_array``, for ``map_blocks`` and anndata. ``sparse``:
            blocks are ``sparse.COO``, with which dask's own reductions work.
        block_nnz
            Entries per chunk; a worker holds 12 bytes for each, or with ``sparse`` 24.
        """
        from dask_convert.reading.dask_columns import to_dask

        return to_dask(self._reader(matrix), kind, block_nnz)

    def to_anndata(self, *, lazy: bool = True) -> anndata.AnnData:
        """The store as an AnnData object.

        Parameters
        ----------
        lazy
            Leave everything on disk, CSC matrices as `to_dask` has them (needs xarray); or else
            read all of it into memory.
        """
        import anndata

        if not lazy:
            return element(self.root, "")
        try:
            read: Any = anndata.experimental.read_lazy(self.root)
        except ImportError as error:
            msg = f"a lazy AnnData object needs xarray: pip install xarray ({error})"
            raise StoreError(msg) from error
        for name in self.matrices:
            if name == "X":
                read.X = self.to_dask(name)
            elif name.startswith("layers/"):
                read.layers[name.removeprefix("layers/")] = self.to_dask(name)
        return read

    def gene_stats(
        self,
        groupby: str | ArrayLike | None = None,
        *,
        obs: Any = None,
        matrix: str = "X",
        client: Client | None = None,
    ) -> pd.DataFrame:
        """Statistics of every gene in every group of obs, in one pass in bounded memory.

        Parameters
        ----------
        groupby
            A column of obs, or one label per obs; obs without a label are left out. None for all
            obs in one group.
        obs
            Only these obs, as for `read`.
        matrix
            ``X``, ``layers/NAME`` or ``raw/X``.
        client
            Of the cluster to work on, which sees the store at the same place; None for dask's
            default scheduler.

        Returns
        -------
            Indexed by gene and group. ``n_obs``: obs in the group; ``n_expressing``: those whose
            value is not 0; ``fraction``: of them; ``mean`` and ``variance`` (with n − 1) over all
            obs of the group, in float64.
        """
        from dask_convert.reading.gene_stats import gene_stats, groups_of

        rows = self._axes.rows(obs)
        groups = groups_of(self._axes.group_labels(groupby), rows)
        stats = gene_stats(self._reader(matrix), self._axes.var_of(matrix).names, groups, client)
        return stats.droplevel(1) if groupby is None else stats

    def indptr(self, matrix: str = "X") -> NDArray[np.int64]:
        """Where the entries of each gene begin, shape (n_vars + 1,); a copy."""
        return self._reader(matrix).indptr.copy()

    # ------------------------------------------------------------------ inside

    def _reader(self, matrix: str) -> CscReader:
        if matrix not in self._readers:
            group = self.root.get(matrix) if _names_a_matrix(matrix) else None
            if group is None:
                there = ", ".join(self.matrices) or "none"
                msg = f"there is no matrix {matrix!r} in {self.root.store_path}; there are: {there}"
                raise SelectionError(msg)
            reader = open_csc(group, matrix, fill_missing=self._fill_missing)
            expected = (self.n_obs, self._axes.var_of(matrix).length)
            if reader.shape != expected:
                msg = f"{self.root.store_path}: {matrix} is {reader.shape}, its axes {expected}"
                raise StoreError(msg)
            self._readers[matrix] = reader
        return self._readers[matrix]

    def _elements(self) -> list[str]:
        """Names that matrices can have."""
        layers: Any = self.root.get("layers")
        names = sorted(layers.keys()) if layers is not None else []
        return ["X", *(f"layers/{name}" for name in names), "raw/X"]


def _names_a_matrix(name: str) -> bool:
    """Whether a matrix can have this name: what else a store holds is no matrix of genes."""
    return name in {"X", "raw/X"} or re.fullmatch("layers/[^/]+", name) is not None


class GenesBy:
    """A store whose genes go by a column of var; see `Store.by`.

    Parameters
    ----------
    store
        The store.
    column
        Of var.
    """

    def __init__(self, store: Store, column: str) -> None:
        self._store = store
        self._column = column

    def __getitem__(self, genes: Any) -> Any:
        """Columns of ``X`` as a ``csc_array``."""
        return self.read(genes)

    def __repr__(self) -> str:
        return f"{self._store!r}, genes by {self._column!r}"

    def read(self, genes: Any, **options: Any) -> Any:
        """Read genes as `Store.read` does; frames have the column's values as their columns."""
        return self._store.read(genes, by=self._column, **options)
