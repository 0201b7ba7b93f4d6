"""TLS credentials for one run: a key and a certificate that nobody else can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dask_convert.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Security


def temporary_security(directory: Path) -> Security:
    """Make credentials that scheduler, workers and client of one run share.

    The certificate is its own authority: whoever has no part of it is refused by all of them,
    and nothing is ever sent in the clear.

    Parameters
    ----------
    directory
        Made, private (0700), on a file system that workers see; removed with the run.

    Raises
    ------
    ClusterError
        The package that makes keys is not installed.
    """
    from distributed import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        msg = "TLS needs the package cryptography: pip install 'dask_convert[slurm]'"
        raise ClusterError(msg) from error
    directory.mkdir(mode=0o700)
    certificate = _write_private(directory / "certificate.pem", made.tls_client_cert)
    key = _write_private(directory / "key.pem", made.tls_client_key)
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{
            f"tls_{role}_{part}": path
            for role in ("client", "scheduler", "worker")
            for part, path in (("cert", certificate), ("key", key))
        },
    )


def _write_private(path: Path, text: str) -> str:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return str(path)
