"""Profiles: what the readers of a target need, as defaults of the options that shape it.

    anndata      zarr v3 in shards, for anndata and `dask_convert.open_store`
    vitessce     zarr v2, a file per chunk, in types that JavaScript has numbers for
    cellxgene    an h5ad file whose matrices are CSC of float32

An option that is given goes before the profile's default. Only where a reader could not read what
was asked for is it refused.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from dask_convert.errors import PlanError
from dask_convert.planning.layout import DEFAULT_CHUNK_NNZ

ProfileName = Literal["anndata", "vitessce", "cellxgene"]

BROWSER_CHUNK_NNZ = 2**16
"""Entries per chunk for browsers, which fetch whole chunks: 100 kB or so, values and rows."""


class Profile(msgspec.Struct, frozen=True):
    """Defaults, and what its readers cannot do without.

    Attributes
    ----------
    defaults
        Values of `Settings` that were left open.
    needed
        Names of those that may not be anything else.
    """

    defaults: dict[str, Any]
    needed: tuple[str, ...] = ()


PROFILES: dict[str, Profile] = {
    "anndata": Profile(
        {"zarr_format": 3, "chunk_nnz": DEFAULT_CHUNK_NNZ, "shard_nnz": None, "data_dtype": "same"}
    ),
    "vitessce": Profile(
        {"zarr_format": 2, "chunk_nnz": BROWSER_CHUNK_NNZ, "shard_nnz": 0, "data_dtype": "auto"},
        ("zarr_format", "shard_nnz"),
    ),
    "cellxgene": Profile(
        {
            "zarr_format": 3,
            "chunk_nnz": DEFAULT_CHUNK_NNZ,
            "shard_nnz": None,
            "data_dtype": "float32",
        },
        ("data_dtype", "zarr_format"),
    ),
}


def with_profile(name: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """The values of a profile, where nothing else was chosen.

    Parameters
    ----------
    name
        Of the profile.
    chosen
        Options by name; None for those that were left open.

    Raises
    ------
    PlanError
        There is no such profile, or it needs something else than what was chosen.
    """
    if name not in PROFILES:
        msg = f"profile is {name!r}; there are {', '.join(get_args(ProfileName))}"
        raise PlanError(msg)
    profile = PROFILES[name]
    given = {option: value for option, value in chosen.items() if value is not None}
    for option in profile.needed:
        needed = profile.defaults[option]
        if given.get(option, needed) != needed:
            msg = (
                f"{option} is {given[option]!r}, and profile {name} needs {needed!r}: leave out "
                "one of them"
            )
            raise PlanError(msg)
    return profile.defaults | given
