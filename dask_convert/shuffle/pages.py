"""Paged records: what entries of count matrices travel as, two bytes each.

A *page* is 256 consecutive rows of a row block. Within a column of a page, a row needs one
byte, and most counts need one as well:

    record   uint16   [ value 8 | row within the page 8 ]

How many records of a column belong to which page is kept beside them, which costs a
sixteenth of a byte per entry at 15 % density. Within a column range the records of a page lie
together, so that a page can be ordered by itself, in the second-level cache:

    range    0                                        1
    page     0            1            2              0            1       …
    column   0 0 1 1 1 2  0 1 1 2 2 2  0 0 0 1 2 2    3 4 4 4 5    3 3 4  …

A value of 255 in a record stands for 255 and
more: the true one is on a list of *escapes*, by place. So a block takes 2.1 bytes per entry
without any compression, less than half of what row and value take as words, and its
fragments need neither be compressed nor inflated: that is a third of the time that this
program itself takes (the codecs of source and target aside).

Paged records serve values that are, or can be narrowed to, integers of at most 16 bits.
Everything else, and very sparse matrices, whose pages would be all but empty, travel as the
words of `dask_convert.planning.records`.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.planning.records import pack_records, unpack_rows
from dask_convert.shuffle import kernels

ESCAPE = 255
MAX_ESCAPES = 1 / 64
"""Share of escapes above which words are the better records."""


class PagedRecords(msgspec.Struct, frozen=True):
    """Records of some columns: of one column range after the other, and in it of page after page.

    Attributes
    ----------
    records
        Shape (n,), uint16: value in the upper byte, row within the page in the lower. In a page
        they are in column order.
    page_counts
        Records of each column in each page; shape (columns, pages), uint16.
    column_width
        Columns of each range but the last.
    escape_places, escape_values
        What stands for 255: places in the order of columns, pages aside, ascending, uint32, and
        values, uint16.
    """

    records: NDArray[np.uint16]
    page_counts: NDArray[np.uint16]
    column_width: int
    escape_places: NDArray[np.uint32]
    escape_values: NDArray[np.uint16]

    def to_words(self) -> NDArray[np.uint32]:
        """The same records as words in column order, rows counted from the block's start."""
        words = np.empty(self.records.size, np.uint32)
        sources = np.empty(self.page_counts.shape[1], np.int64)
        kernels.unpage(self.records, self.page_counts, self.column_width, sources, words)
        escaped = words[self.escape_places]
        rows = unpack_rows(escaped, self.escape_values.dtype)
        words[self.escape_places] = pack_records(rows, self.escape_values)
        return words
