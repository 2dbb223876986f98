"""Keeps the secret that signs access tokens in a file under `DATA_DIR`, for a start without JWT_SECRET."""

import fcntl
import os
import secrets
from pathlib import Path

from backend.database.embedded import make_file, open_file
from backend.settings import MIN_SECRET_BYTES, SettingsError

_NAME = "jwt-secret"


def kept_secret(data_dir: Path) -> str:
    """Return the secret, which the first start makes; raises `SettingsError`.

    The file is written and then renamed, so that a power failure leaves no part of it. Its owner is the
    directory's.
    """
    try:
        secret = _read_or_make(data_dir)
    except OSError as error:
        raise SettingsError(f"{data_dir / _NAME}: {error.args[-1]}") from error
    if len(secret) < MIN_SECRET_BYTES or not secret.isascii():
        raise SettingsError(
            f"{data_dir / _NAME}: is cut short; delete it, and the next start makes a new secret"
        )
    return secret.decode()


def _read_or_make(data_dir: Path) -> bytes:
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of several processes that start at once, one makes it
        owner = os.fstat(folder).st_uid
        with os.fdopen(open_file(_NAME, folder, 0, os.geteuid(), owner), "rb") as kept:
            return kept.read(4096).strip()
    except FileNotFoundError:
        return _make(folder, owner)
    finally:
        os.close(folder)


def _make(folder: int, owner: int) -> bytes:
    secret = secrets.token_urlsafe(48).encode()
    with os.fdopen(make_file(f"{_NAME}.new", folder, owner), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{_NAME}.new", _NAME, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
    return secret
