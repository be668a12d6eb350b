"""Export a session to one file, with its stored state if chosen, and import it on another machine.

The file is a zip archive without compression: ``session.json`` as in the sessions folder, ``blobs/NAME`` for each blob.
An archive is not trusted: only these two kinds of names are read, every blob must match its name, entries are stored as they
are, and no more bytes are read than the file has, whatever its directory claims.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

from jambacli.cache.fingerprint import portable_name
from jambacli.cache.prefix_store import PrefixStore, blob_name
from jambacli.errors import BadFileError, JambaError
from jambacli.files import atomic_write, refuse_existing
from jambacli.session import session_file
from jambacli.zip_guard import opened_zip

# A blob holds 512 tokens' keys and values, a checkpoint, or logits: 80 MB at most for the largest model.
_MAX_BLOB = 512 << 20
_MAX_JSON = 64 << 20


def export_session(name: str, path: Path, *, force: bool = False, with_state: bool = True) -> int:
    """Write a session to ``path``; returns the size in bytes. Raises JambaError when it is missing or open elsewhere."""
    refuse_existing(path, force)
    store = PrefixStore()
    with session_file.opened(name):
        session = session_file.read(name)
        with atomic_write(path, recorded=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            longest = session.prefixes[-1:] if with_state else []
            kept = []
            for prefix in longest:
                blobs = {blob: store.get_blob(blob) for blob in prefix.blobs}
                if any(data is None for data in blobs.values()):
                    continue
                kept.append(prefix)
                for blob, data in blobs.items():
                    assert data is not None
                    archive.writestr(f"blobs/{blob}", bytes(data))
            session.prefixes = kept
            session.fingerprint = portable_name(session.fingerprint, Path(session.model_path))
            archive.writestr("session.json", session_file.to_json(session))
    return path.stat().st_size


def import_session(path: Path, name: str | None = None) -> str:
    """Import an archive, under ``name`` if given; returns the session's name. Raises BadFileError for an invalid archive."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never answer
            raise BadFileError(path, "is not a session archive, or no file")
        with opened_zip(path, str(path)) as archive:
            return _import(path, archive, name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise BadFileError(path, f"is not a session archive ({error})") from error
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error


def _import(path: Path, archive: zipfile.ZipFile, name: str | None) -> str:
    entries = {info.filename: info for info in archive.infolist()}
    if "session.json" not in entries:
        raise BadFileError(path, "is not a session archive: it has no session.json")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries.values()):
        raise BadFileError(path, "is not a session archive: it holds compressed or encrypted entries")
    session = session_file.parsed(_read(path, archive, entries["session.json"], _MAX_JSON), path)
    session.name = session_file.check_name(name or session.name)
    if session_file.exists(session.name):
        raise JambaError(f"a session named {session.name!r} already exists", remedy="choose another {own_name}")
    store = PrefixStore()
    with session_file.opened(session.name):
        with store.writing():
            left = path.stat().st_size  # entries may overlap
            for blob in {b for p in session.prefixes for b in p.blobs}:
                if f"blobs/{blob}" not in entries:
                    raise BadFileError(path, f"blob {blob} is missing")
                data = _read(path, archive, entries[f"blobs/{blob}"], min(left, _MAX_BLOB))
                left -= len(data)
                if blob_name(data) != blob:
                    raise BadFileError(path, f"blob {blob} is damaged")
                store.put_blob(data, blob)
        session_file.write(session)
    return session.name


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of an entry, at most ``limit``."""
    with archive.open(info) as file:
        data = file.read(limit + 1)
    if len(data) > limit or len(data) != info.file_size:
        raise BadFileError(
            path, f"is not a session archive: {info.filename[:60]!r} is longer than it can be, or cut off"
        )
    return data
