"""What a conversion did, and what a verification found, in numbers."""

from __future__ import annotations

import msgspec

from dask_convert.errors import VerificationError
from dask_convert.planning.plans import ConversionPlan
from dask_convert.shuffle.findings import Findings


class MatrixResult(msgspec.Struct, frozen=True):
    """What became of one matrix.

    Attributes
    ----------
    name, n_obs, n_vars, nnz
        The matrix.
    data_dtype
        Type of the values in the target.
    source_bytes, fragment_bytes, target_bytes
        Read from the source as stored, written to scratch, written to the target.
    split_seconds, combine_seconds
        Wall time of the stages; the barrier is part of the second.
    steps
        Seconds of each step, added up over all tasks.
    findings
        Unusual entries, all of which were kept: duplicates, zeros, NaN, infinities.
    blocks_reused, regions_reused
        Tasks whose work an earlier, interrupted run had done; bytes and seconds include it.
    process_peaks
        Most memory that each process which ran tasks has had resident, in bytes and by itself,
        shared pages included; by host and process id.
    """

    name: str
    n_obs: int
    n_vars: int
    nnz: int
    data_dtype: str
    source_bytes: int
    fragment_bytes: int
    target_bytes: int
    split_seconds: float
    combine_seconds: float
    steps: dict[str, float]
    findings: Findings
    blocks_reused: int = 0
    regions_reused: int = 0
    process_peaks: dict[str, int] = {}


class VerifiedMatrix(msgspec.Struct, frozen=True):
    """What was compared of one sparse matrix.

    Attributes
    ----------
    name, nnz
        The matrix, and its entries in the source.
    h5py_nnz
        Entries of the source that were read with h5py: all of them, or, right after a
        conversion, a sample.
    zarr_nnz
        Entries of the target that were read with zarr-python: a sample, or all of them where
        they are stored in a way that only zarr-python knows.
    source_format, target_format
        ``csr`` or ``csc``.
    seconds
        Of reading and digesting, added up over all tasks.
    """

    name: str
    nnz: int
    h5py_nnz: int
    zarr_nnz: int
    source_format: str
    target_format: str
    seconds: dict[str, float]


class VerificationResult(msgspec.Struct, frozen=True):
    """What a verification found.

    Attributes
    ----------
    source, target
        What was compared.
    differences
        What differs, a line each; empty if nothing does.
    matrices
        The sparse matrices that were compared entry by entry.
    seconds
        Wall time.
    """

    source: str
    target: str
    differences: tuple[str, ...]
    matrices: tuple[VerifiedMatrix, ...]
    seconds: float

    def __repr__(self) -> str:
        names = ", ".join(matrix.name for matrix in self.matrices) or "no matrix"
        verdict = "equal" if self.equal else f"{len(self.differences):,} differences"
        return f"<VerificationResult: {verdict}; {self.nnz:,} entries of {names} compared>"

    def _repr_html_(self) -> str:
        from dask_convert.display.html import verification_html

        return verification_html(self)

    @property
    def equal(self) -> bool:
        """Whether the store holds exactly what its source holds."""
        return not self.differences

    @property
    def nnz(self) -> int:
        """Entries compared."""
        return sum(matrix.nnz for matrix in self.matrices)

    def require_equal(self) -> VerificationResult:
        """The same.

        Raises
        ------
        VerificationError
            Something differs; lists it.
        """
        if self.differences:
            raise VerificationError(self.target, self.differences)
        return self


class ConversionResult(msgspec.Struct, frozen=True):
    """What a conversion did.

    Attributes
    ----------
    target
        Path of the store.
    plan
        What was planned.
    matrices
        What became of each matrix.
    seconds
        Wall time from the call on, the start of a cluster not included.
    peak_bytes
        Most memory seen in use by this process and those below it, which are all there are on
        one machine; 0 if not measured. On a cluster see `worker_peaks`.
    verification
        What comparing the store with its source found, if that was asked for.
    abandoned
        Scratch directories of other runs, dead ones, that were seen beside this one's.
    """

    target: str
    plan: ConversionPlan
    matrices: tuple[MatrixResult, ...]
    seconds: float
    peak_bytes: int
    verification: VerificationResult | None = None
    abandoned: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(matrix.name for matrix in self.matrices) or "no matrix"
        verified = "" if self.verification is None else ", verified"
        return (
            f"<ConversionResult: {self.target}, {self.nnz:,} entries of {names} "
            f"in {self.seconds:.1f} s{verified}>"
        )

    def _repr_html_(self) -> str:
        from dask_convert.display.html import result_html

        return result_html(self)

    @property
    def worker_peaks(self) -> dict[str, int]:
        """Most memory that each process which ran tasks has had resident; as `process_peaks`."""
        peaks: dict[str, int] = {}
        for matrix in self.matrices:
            for process, peak_bytes in matrix.process_peaks.items():
                peaks[process] = max(peak_bytes, peaks.get(process, 0))
        return peaks

    @property
    def nnz(self) -> int:
        """Entries converted."""
        return sum(matrix.nnz for matrix in self.matrices)
