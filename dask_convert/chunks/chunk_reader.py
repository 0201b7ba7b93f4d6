"""From the numbers of chunks to their elements: found, fetched, checked, decoded.

A chunk that is not there is an error. zarr-python reads it as zeros, which in a matrix are
wrong numbers; so are bits that flipped, where chunks have checksums to tell.

Two ways lead to the elements. The direct one fetches the bytes of a chunk and decodes them with
the library that zarr-python would use, without its event loop: a gene takes a sixth of the time.
The general one looks whether the chunk is there and asks zarr-python. A property test holds
both to the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from dask_convert.chunks.chunk_bytes import ByteSource, byte_source
from dask_convert.chunks.chunk_codecs import ChunkLayout, chunk_layout, decode_chunk, decode_index
from dask_convert.errors import DamagedStoreError

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

JOINED_BYTES = 4 * 2**20
"""Neighbouring chunks of a shard are fetched in one read of up to so many decoded bytes."""

_GAP_BYTES = 64 * 2**10  # of a shard that are fetched and thrown away rather than skipped
_ABSENT = 2**64 - 1
_Content = bytes | memoryview


class _Place(NamedTuple):
    """Where a chunk lies in its shard."""

    number: int
    start: int
    stop: int


class ChunkReader:
    """Reads chunks of one array of a store. Can be pickled, and used by several threads.

    Parameters
    ----------
    array
        One-dimensional.
    name
        Its path in the store, for messages.
    fill_missing
        Take a chunk that is not there for one full of the fill value, as zarr does.
    direct
        Whether to decode without zarr-python where that is possible.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        name: str,
        *,
        fill_missing: bool = False,
        direct: bool = True,
        source: ByteSource | None = None,
    ) -> None:
        layout = chunk_layout(array, name)
        self.layout: ChunkLayout = layout if direct else replace(layout, steps=None)
        self._array = array
        self._source = source or byte_source(array)
        self._fill_missing = fill_missing
        self._indexes: dict[int, NDArray[np.uint64] | None] = {}

    @property
    def remote(self) -> bool:
        """Whether reading is mostly waiting, so that many reads at once pay."""
        return self._source.remote or self.layout.steps is None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements in memory."""
        return self.layout.dtype.newbyteorder("=")

    def all_elements(self) -> NDArray[Any]:
        """The whole array."""
        return self.elements(0, self.layout.length)

    def elements(self, start: int, stop: int) -> NDArray[Any]:
        """The elements ``[start, stop)``, decoded to where they stay if they are whole chunks.

        Raises
        ------
        DamagedStoreError, StoreError
            See `read`.
        """
        length = self.layout.chunk_length
        elements = np.empty(stop - start, self.layout.dtype)
        for number, content in self._contents(range(start // length, -(-stop // length))):
            low, high = number * length, (number + 1) * length
            if start <= low and high <= stop:
                self._chunk(number, content, elements[low - start : high - start])
                continue
            chunk = self._chunk(number, content)
            inside = slice(max(low, start), min(high, stop))
            elements[inside.start - start : inside.stop - start] = chunk[
                inside.start - low : inside.stop - low
            ]
        return elements.astype(self.dtype, copy=False)

    def groups(self, numbers: list[int]) -> list[list[int]]:
        """Ascending numbers of chunks, parted into those that one read fetches."""
        most = max(1, JOINED_BYTES // self.layout.chunk_bytes)
        per_file, groups = self.layout.chunks_per_file, list[list[int]]()
        for number in numbers:
            last = groups[-1] if groups else []
            joins = last and number == last[-1] + 1 and number // per_file == last[-1] // per_file
            if joins and len(last) < most:
                last.append(number)
            else:
                groups.append([number])
        return groups

    def expect_indexes(self, numbers: list[int]) -> None:
        """Have the indexes fetched that are not known yet of the shards of some chunks."""
        layout = self.layout
        if self.remote or not layout.sharded:
            return
        n_bytes = layout.index_bytes
        for file in dict.fromkeys(number // layout.chunks_per_file for number in numbers):
            if file not in self._indexes:
                part = (-n_bytes, None) if layout.index_at_end else (0, n_bytes)
                self._source.expect(layout.key(file), *part)

    def expect(self, group: list[int]) -> None:
        """Have chunks fetched that `read` will be asked for together, if that can be done ahead."""
        if self.remote:  # even to look at an index would be waiting
            return
        if not self.layout.sharded:
            for number in group:
                self._source.expect(self.layout.key(number), 0, None)
            return
        places = [place for place in map(self._place, group) if place is not None]
        if places:
            key = self.layout.key(group[0] // self.layout.chunks_per_file)
            self._source.expect(key, places[0].start, max(place.stop for place in places))

    def read(self, numbers: list[int] | range) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield each chunk's number and elements, the last chunk padded or not.

        Parameters
        ----------
        numbers
            Of chunks, ascending.

        Raises
        ------
        DamagedStoreError
            A chunk is missing, cut short, or fails its checksum.
        StoreError
            The storage fails.
        """
        for number, content in self._contents(numbers):
            yield number, self._chunk(number, content)

    def _contents(self, numbers: list[int] | range) -> Iterator[tuple[int, _Content | None]]:
        """Each chunk's number, and its bytes: none where zarr-python decodes, None if missing."""
        if self.layout.sharded:
            yield from self._contents_of_shards(numbers)
            return
        for number in numbers:
            content = self._source.whole(self.layout.key(number))
            yield number, b"" if content is not None and self.layout.steps is None else content

    def _contents_of_shards(
        self, numbers: list[int] | range
    ) -> Iterator[tuple[int, _Content | None]]:
        run: list[_Place] = []
        for number in numbers:
            place = self._place(number)
            if run and (place is None or not self._adjoin(run, place)):
                yield from self._fetched(run)
                run = []
            if place is None:
                yield number, None
            elif self.layout.steps is None:
                yield number, b""
            else:
                run.append(place)
        if run:
            yield from self._fetched(run)

    def _chunk(
        self, number: int, content: _Content | None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """A chunk's elements, from what `_contents` gives; in `out`, if that is given."""
        if content is not None and self.layout.steps is not None:
            try:
                return decode_chunk(self.layout, content, out)
            except ValueError as error:
                self._fail(number, str(error))
        chunk = self._missing(number) if content is None else self._by_zarr(number)
        if out is None:
            return chunk
        out[:] = chunk
        return out

    def _place(self, number: int) -> _Place | None:
        """Where a chunk lies in its shard; None where it is not."""
        file, slot = divmod(number, self.layout.chunks_per_file)
        index = self._index(file)
        if index is None:
            return None
        offset, n_bytes = (int(item) for item in index[slot])
        if offset == _ABSENT and n_bytes == _ABSENT:
            return None
        return _Place(number, offset, offset + n_bytes)

    def _adjoin(self, run: list[_Place], place: _Place) -> bool:
        per_file = self.layout.chunks_per_file
        return (
            run[-1].number // per_file == place.number // per_file
            and 0 <= place.start - run[-1].stop <= _GAP_BYTES
            and len(run) < max(1, JOINED_BYTES // self.layout.chunk_bytes)
        )

    def _fetched(self, run: list[_Place]) -> Iterator[tuple[int, _Content]]:
        """Read neighbours in one shard at once, and yield them one by one."""
        first, last = run[0].start, run[-1].stop
        key = self.layout.key(run[0].number // self.layout.chunks_per_file)
        content = self._source.part(key, first, last)
        if content is None:
            self._fail(run[0].number, "is missing")
        self._check_range(run[0].number, content, last - first)
        for place in run:
            part = memoryview(content)[place.start - first : place.stop - first]
            if len(part) < place.stop - place.start:
                self._fail(place.number, "lies beyond the end of its file, which was cut short")
            yield place.number, part

    def _index(self, file: int) -> NDArray[np.uint64] | None:
        """A shard's index, read when it is first needed; None where there is no such shard."""
        if file in self._indexes:
            return self._indexes[file]
        layout, key = self.layout, self.layout.key(file)
        number = file * layout.chunks_per_file
        if layout.index_at_end:
            content = self._source.tail(key, layout.index_bytes)
        else:
            content = self._source.part(key, 0, layout.index_bytes)
        index = None
        if content is not None:
            self._check_range(number, content, layout.index_bytes)
            try:
                if len(content) != layout.index_bytes:
                    msg = f"is {len(content):,} bytes long instead of {layout.index_bytes:,}"
                    raise ValueError(msg)  # noqa: TRY301  # told like a wrong checksum
                index = decode_index(layout, content)
            except ValueError as error:
                self._fail(number, f"the index of the shard {error}")
        self._indexes[file] = index
        return index

    def _check_range(self, number: int, content: bytes, n_bytes: int) -> None:
        """Look that a server has not sent more than the range that was asked for."""
        if len(content) > n_bytes:
            self._fail(
                number,
                f"{len(content):,} bytes came where {n_bytes:,} were asked for: the server "
                "ignores byte ranges; use one that knows them, or copy the store",
            )

    def _by_zarr(self, number: int) -> NDArray[Any]:
        """Let zarr-python decode a chunk, which it would invent if it were missing."""
        layout = self.layout
        start = number * layout.chunk_length
        try:
            elements: Any = self._array[start : min(start + layout.chunk_length, layout.length)]
        except Exception as error:  # noqa: BLE001  # told by _fail; each codec has its own
            self._fail(number, f"zarr cannot read it: {type(error).__name__}: {error}")
        return elements  # type: ignore[no-any-return]  # zarr's arrays can be scalars

    def _missing(self, number: int) -> NDArray[Any]:
        if not self._fill_missing:
            self._fail(
                number,
                "is missing. If the writer left out chunks of zeros, as zarr does unless told "
                "otherwise, open the store with missing='zeros'",
            )
        fill_value = self._array.fill_value
        # Format 2 may have none, which zarr-python takes for zero.
        return np.full(
            self.layout.chunk_length, 0 if fill_value is None else fill_value, self.dtype
        )

    def _fail(self, number: int, what: str) -> NoReturn:
        layout = self.layout
        start = number * layout.chunk_length
        stop = min(start + layout.chunk_length, layout.length)
        msg = (
            f"{self._array.store_path}: chunk {number:,} of {layout.name} (elements {start:,} to "
            f"{stop:,}, file {layout.key(number // layout.chunks_per_file)}): {what}"
        )
        error = DamagedStoreError(msg)
        error.what = what
        raise error
