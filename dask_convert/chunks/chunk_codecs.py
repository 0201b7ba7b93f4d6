"""How the chunks of a stored array are laid out, and how their bytes become elements.

Decoding knows the codecs that stores of this tool and of anndata use; what it does not know is
left to zarr-python (see `dask_convert.chunks.chunk_reader`). Nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numcodecs
import numpy as np
from zarr.core.metadata import ArrayV2Metadata

from dask_convert.errors import StoreError

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

CHECKSUM_BYTES = 4
_ENTRY_BYTES = 16  # of a shard's index: offset and size of a chunk
_V3_CODECS = {"blosc": numcodecs.Blosc, "zstd": numcodecs.Zstd, "gzip": numcodecs.GZip}
_BLOSC_HEADER_BYTES = 16

Step = Literal["crc32c"] | Any
"""One step of decoding: a checksum to check and cut off, or something that decompresses."""


@dataclass(frozen=True)
class ChunkLayout:
    """How a one-dimensional zarr array is stored.

    Attributes
    ----------
    name
        Its path in the store, for messages.
    length
        Number of elements.
    dtype
        Type of the elements, with the byte order of the stored bytes.
    chunk_length
        Elements per chunk, the unit of reading.
    chunks_per_file
        1 where the array is not sharded.
    sharded
        Whether files are shards, with an index, be it of one chunk.
    index_at_end
        Where the index of a shard is.
    key_prefix
        What stands before the number of a file in its key.
    steps
        What turns stored bytes into those of elements; None where zarr-python has to.
    """

    name: str
    length: int
    dtype: np.dtype[Any]
    chunk_length: int
    chunks_per_file: int
    sharded: bool
    index_at_end: bool
    key_prefix: str
    steps: tuple[Step, ...] | None

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return self.chunk_length * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Size of a shard's index, its checksum included."""
        return self.chunks_per_file * _ENTRY_BYTES + CHECKSUM_BYTES

    def key(self, file: int) -> str:
        """The key of a file, relative to the array."""
        return f"{self.key_prefix}{file}"


def chunk_layout(array: zarr.Array[Any], name: str) -> ChunkLayout:
    """How a stored array is laid out, by its metadata.

    Raises
    ------
    StoreError
        It is not one-dimensional, or its shards have an index of an unknown kind.
    """
    if array.ndim != 1:
        msg = f"{name}: has {array.ndim} axes; the members of a sparse matrix have one"
        raise StoreError(msg)
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        sharding, dtype, steps = None, array.dtype, _steps_of_v2(metadata)
    else:
        codecs = [codec.to_dict() for codec in metadata.codecs]
        sharding = _sharding(codecs, name)
        inner = codecs if sharding is None else list(sharding["codecs"])
        dtype, steps = _steps_of_v3(inner, array.dtype)
    per_file = array.shards[0] // array.chunks[0] if array.shards else 1
    return ChunkLayout(
        name=name,
        length=int(array.shape[0]),
        dtype=dtype,
        chunk_length=int(array.chunks[0]),
        chunks_per_file=int(per_file),
        sharded=sharding is not None,
        index_at_end=sharding is None or str(sharding["index_location"]) == "end",
        key_prefix=metadata.encode_chunk_key((0,))[:-1],
        steps=steps,
    )


def decode_chunk(
    layout: ChunkLayout, encoded: bytes | memoryview, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The elements of one whole chunk.

    Parameters
    ----------
    layout, encoded
        Of the array, and of the chunk.
    out
        Room for them, contiguous and of their type, which is returned; of their own by default.

    Raises
    ------
    ValueError
        The checksum is wrong, or the bytes do not decode to a chunk.
    """
    content: Any = encoded
    room = None if out is None else out.view(np.uint8)  # not every type has a buffer format
    for step in layout.steps or ():
        if isinstance(step, str):  # comparing would have a codec describe itself
            content = checked(content)
            continue
        direct = isinstance(step, numcodecs.Blosc)  # others may leave some of the room as it was
        if direct:
            _check_blosc_header(content, layout.chunk_bytes)
        try:
            content = step.decode(content, room) if direct else step.decode(content)
        except Exception as error:  # each codec has exceptions of its own
            msg = f"cannot be decompressed ({type(error).__name__}: {error})"
            raise ValueError(msg) from error
    view = memoryview(content).cast("B")
    if view.nbytes != layout.chunk_bytes:
        msg = f"decodes to {view.nbytes:,} bytes instead of {layout.chunk_bytes:,}"
        raise ValueError(msg)
    elements = np.frombuffer(view, layout.dtype)
    if out is None or content is room:
        return elements if out is None else out
    out[:] = elements
    return out


def decode_index(layout: ChunkLayout, encoded: bytes) -> NDArray[np.uint64]:
    """Offset and size of every chunk of a shard, shape (chunks, 2).

    Raises
    ------
    ValueError
        The checksum is wrong.
    """
    return np.frombuffer(checked(encoded), "<u8").reshape(layout.chunks_per_file, 2)


def checked(encoded: bytes | memoryview) -> memoryview:
    """The bytes without the crc32c that follows them.

    Raises
    ------
    ValueError
        It is not theirs.
    """
    content = memoryview(encoded)
    body, stored = content[:-CHECKSUM_BYTES], bytes(content[-CHECKSUM_BYTES:])
    found = google_crc32c.value(bytes(body))
    if found.to_bytes(CHECKSUM_BYTES, "little") != stored:
        msg = f"its checksum is {found:08x}, stored is {int.from_bytes(stored, 'little'):08x}"
        raise ValueError(msg)
    return body


def _check_blosc_header(content: bytes | memoryview, chunk_bytes: int) -> None:
    """Look at the sizes that blosc declares, before it allocates what they say."""
    header = bytes(content[:_BLOSC_HEADER_BYTES])
    decoded, stored = (int.from_bytes(header[at : at + 4], "little") for at in (4, 12))
    if len(header) < _BLOSC_HEADER_BYTES or (decoded, stored) != (chunk_bytes, len(content)):
        msg = f"is not a blosc buffer of {chunk_bytes:,} bytes in {len(content):,}"
        raise ValueError(msg)


def _sharding(codecs: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The configuration of the sharding codec, if the array has one that we can look into."""
    if codecs[0]["name"] != "sharding_indexed":
        return None
    configuration: dict[str, Any] = codecs[0]["configuration"]
    index = [codec["name"] for codec in configuration["index_codecs"]]
    endian = configuration["index_codecs"][0].get("configuration", {}).get("endian")
    if len(codecs) > 1 or index != ["bytes", "crc32c"] or str(endian) != "little":
        msg = (
            f"{name}: the index of its shards is stored as {index}, which cannot be read here; "
            "rewrite the store with the index codecs 'bytes' (little) and 'crc32c'"
        )
        raise StoreError(msg)
    return configuration


def _steps_of_v3(
    codecs: list[dict[str, Any]], dtype: np.dtype[Any]
) -> tuple[np.dtype[Any], tuple[Step, ...] | None]:
    """Type as stored, and the steps of decoding: the last codec first."""
    names = [codec["name"] for codec in codecs]
    known = {"crc32c", *_V3_CODECS}
    # What blosc declares is checked against the elements, so it has to be what holds them.
    if names[0] != "bytes" or not known.issuperset(names[1:]) or "blosc" in names[2:]:
        return dtype, None
    endian = str(codecs[0].get("configuration", {}).get("endian", "little"))
    steps = (
        "crc32c" if codec["name"] == "crc32c" else _V3_CODECS[codec["name"]]()
        for codec in reversed(codecs[1:])
    )
    return dtype.newbyteorder(">" if endian == "big" else "<"), tuple(steps)


def _steps_of_v2(metadata: ArrayV2Metadata) -> tuple[Step, ...] | None:
    if metadata.filters:
        return None
    return (metadata.compressor,) if metadata.compressor is not None else ()
