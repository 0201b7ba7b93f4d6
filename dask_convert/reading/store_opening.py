"""From a path or URL to the root group of a store, read-only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from dask_convert.errors import StoreError
from dask_convert.surroundings import require_fit, require_fit_zarr

Place = str | os.PathLike[str] | ZarrStore


def open_root(place: Place, storage_options: dict[str, Any] | None = None) -> zarr.Group:
    """The root group of an AnnData store.

    Parameters
    ----------
    place
        A path, a ``file://`` URL, any URL that fsspec knows (obstore where fsspec does not), or
        a store of zarr-python.
    storage_options
        For fsspec or obstore: credentials, endpoints.

    Raises
    ------
    StoreError
        Nothing is there, it is no AnnData store, or the storage cannot be reached.
    PlanError
        zarr-python cannot work in this process.
    """
    require_fit()
    require_fit_zarr()
    try:
        store = _zarr_store(place, storage_options)
        root = zarr.open_group(store, mode="r")
        encoding = root.attrs.get("encoding-type")
    except StoreError:
        raise
    except FileNotFoundError as error:
        msg = f"{place}: no zarr store is there"
        raise StoreError(msg) from error
    except Exception as error:  # every storage has exceptions of its own
        msg = f"{place}: cannot be opened as a zarr store: {type(error).__name__}: {error}"
        raise StoreError(msg) from error
    if encoding != "anndata":
        msg = f"{place}: a zarr store, but not AnnData's (its encoding-type is {encoding!r})"
        raise StoreError(msg)
    return root


def local_path(place: str) -> Path | None:
    """Where a path or a ``file://`` URL leads; None for other URLs."""
    if "://" not in place:
        return Path(place)
    url = urlsplit(place)
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _zarr_store(place: Place, storage_options: dict[str, Any] | None) -> ZarrStore:
    if isinstance(place, ZarrStore):
        return place
    text = os.fspath(place)
    path = local_path(text)
    return _remote(text, storage_options or {}) if path is None else _local(path, text)


def _local(path: Path, text: str) -> ZarrStore:
    if not path.exists():
        msg = f"{text}: no such directory"
        raise StoreError(msg)
    if not path.is_dir():
        msg = f"{text}: not a directory; a zarr store is one (convert an h5ad file first)"
        raise StoreError(msg)
    return LocalStore(path.absolute(), read_only=True)


def _remote(url: str, storage_options: dict[str, Any]) -> ZarrStore:
    """A store of fsspec, or of obstore where fsspec lacks the package for this kind of URL."""
    try:
        return FsspecStore.from_url(url, storage_options=storage_options, read_only=True)
    except (ImportError, ValueError) as error:
        try:
            from obstore.store import from_url
        except ImportError:
            msg = f"{url}: {error}"
            raise StoreError(msg) from error
        return ObjectStore(from_url(url, **storage_options), read_only=True)
