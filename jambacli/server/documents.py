"""Files in messages -> documents of the conversation, read as `jamba ask` reads them, each content once."""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from jambacli.documents.load import read_file
from jambacli.documents.pages import entries_of
from jambacli.server.errors import as_api_error
from jambacli.server.file_parts import FilePart
from jambacli.server.files import FileStore
from jambacli.server.request import Call, Message

# Characters of documents that are kept in memory, and files that are read at once.
_IN_MEMORY, _AT_ONCE = 64 << 20, 2


class DocumentReader:
    """Reads the files of calls. What has been read is kept in memory by its content, the least recently used goes first."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._known: OrderedDict[tuple[str, str], list[dict[str, str]]] = OrderedDict()
        self._coming: dict[tuple[str, str], asyncio.Task[list[dict[str, str]]]] = {}
        self._size = 0
        self._gate = asyncio.Semaphore(_AT_ONCE)
        #: Files that were read: not those that were known.
        self.read = 0

    async def attach(self, call: Call) -> Call:
        """The call with its files as documents of their messages. Raises ApiError for one that cannot be read."""
        if not any(message.files for message in call.messages):
            return call
        return replace(call, messages=[await self._attached(message) for message in call.messages])

    async def _attached(self, message: Message) -> Message:
        if not message.files:
            return message
        found = await self._documents(message.files)
        return replace(message, files=(), documents=(*message.documents, *found))

    async def _documents(self, parts: Sequence[FilePart]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for part in parts:
            if part.file_id is not None:
                file = await asyncio.to_thread(self._files.get, part.file_id)
                found += await self._read(part.name or file.name, file.digest, self._files.path(file))
            else:
                digest = await asyncio.to_thread(lambda data: sha256(data).hexdigest(), part.data)
                found += await self._read(part.name, digest, part.data)
        return found

    async def _read(self, name: str, digest: str, source: Path | bytes) -> list[dict[str, str]]:
        key = (digest, name)  # the name is in the titles, and its ending may decide how the file is read
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._coming:
            self._coming[key] = asyncio.ensure_future(self._extract(key, source))
            self._coming[key].add_done_callback(lambda task: task.cancelled() or task.exception())
        # A client that goes away does not end what others wait for too.
        return await asyncio.shield(self._coming[key])

    async def _extract(self, key: tuple[str, str], source: Path | bytes) -> list[dict[str, str]]:
        try:
            async with self._gate:
                documents = await asyncio.to_thread(_extracted, source, key[1])
        except Exception as error:
            raise as_api_error(error, 400) from error
        finally:
            del self._coming[key]
        self.read += 1
        self._known[key] = documents
        self._size += _characters(documents)
        while self._size > _IN_MEMORY and len(self._known) > 1:
            self._size -= _characters(self._known.popitem(last=False)[1])
        return documents


def _characters(documents: Sequence[Mapping[str, str]]) -> int:
    return sum(len(document["text"]) for document in documents)


def _extracted(source: Path | bytes, name: str) -> list[dict[str, str]]:
    if isinstance(source, Path):
        return [entry.as_document() for entry in entries_of([read_file(source, name=name)])]
    with tempfile.TemporaryDirectory(prefix="jamba-") as folder:
        path = Path(folder) / "input"
        path.write_bytes(source)
        return _extracted(path, name)
