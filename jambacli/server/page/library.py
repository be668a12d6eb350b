"""The documents that the server keeps: contents by digest in a FileStore, and beside each what is known of it and its text."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from jambacli.cache.prefix_store import PrefixStore
from jambacli.errors import JambaError
from jambacli.files import atomic_write, data_home, private_folder, read_regular
from jambacli.server.errors import ApiError, not_found
from jambacli.server.files import FileStore, StoredFile, Upload, clean_name, not_stored
from jambacli.server.page.document import DocumentText, LibraryDocument
from jambacli.server.page.pictures import Pictures

logger = logging.getLogger(__name__)

#: The largest document, and all of them together, in bytes; how many there may be.
MAX_DOCUMENT, LIBRARY_BUDGET, MOST_DOCUMENTS = 512 << 20, 8 << 30, 4096
# Characters of texts that are kept in memory.
_IN_MEMORY = 64 << 20
_ID = re.compile(r"doc-[0-9a-f]{32}")


class Library:
    """The documents. All methods may be called from any thread."""

    def __init__(self, *, keep: bool = True, root: Path | None = None, budget: int = LIBRARY_BUDGET) -> None:
        """``keep``: on the disk beyond the end of this process. ``root``: by default below ``data_home``."""
        self.keep, self.budget = keep, budget
        self._temporary = None if keep else tempfile.TemporaryDirectory(prefix="jamba-library-")
        self._root = root if self._temporary is None else Path(self._temporary.name)
        self._lock = threading.RLock()
        self._known: dict[str, LibraryDocument] | None = None
        self._texts: OrderedDict[str, DocumentText] = OrderedDict()
        # By the hash of a part's text its document and number, of the documents whose parts were hashed.
        self._hashes: dict[str, tuple[str, int]] = {}
        self._hashed: set[str] = set()
        #: How often documents were added, read or removed.
        self.changes = 0
        self._files: FileStore | None = None
        self._pictures: Pictures | None = None

    # Places

    def folder(self) -> Path:
        """The directory. Raises JambaError when it cannot be made."""
        with self._lock:
            if self._root is None or self._files is None:
                self._root = private_folder(
                    self._root or data_home() / "library", "keep documents", inside=("documents",)
                )
                # The library refuses what does not fit, so nothing is removed to make room.
                root = self._root / "files"
                self._files = FileStore(root=root, budget=1 << 62, most=1 << 30, largest=MAX_DOCUMENT)
            return self._root

    @property
    def files(self) -> FileStore:
        """The contents."""
        self.folder()
        assert self._files is not None
        return self._files

    @property
    def largest(self) -> int:
        """The bytes that a document may have."""
        return self.files.largest

    @property
    def pictures(self) -> Pictures:
        """The pictures of pages."""
        if self._pictures is None:
            self._pictures = Pictures(self.folder() / "pictures")
        return self._pictures

    def _path(self, name: str, ending: str) -> Path:
        return self.folder() / "documents" / f"{name}.{ending}"

    def ids_path(self, document: LibraryDocument) -> Path:
        """Where its tokens are kept."""
        return self._path(document.id, "ids")

    def content(self, document: LibraryDocument) -> Path:
        """Where the content of a document is. Raises ApiError when it is gone."""
        path: Path = self.files.path(self.files.get(document.file))
        return path

    # Documents

    def all(self) -> list[LibraryDocument]:
        """Every document, the newest first."""
        with self._lock:
            return sorted(self._loaded().values(), key=lambda d: (-d.created, d.id))

    def get(self, name: str) -> LibraryDocument:
        """The document of that id. Raises ApiError when there is none."""
        with self._lock:
            found = self._loaded().get(name) if _ID.fullmatch(name) else None
        if found is None:
            raise not_found(f"there is no document {name[:80]!r}")
        return found

    @property
    def size(self) -> int:
        """The size of all contents."""
        return sum(document.size for document in self.all())

    def receive(self) -> Upload:
        """A new content, to be written piece by piece. Raises ApiError when there is no room for any."""
        self._check_room(1)
        return self.files.receive()

    def add(self, upload: Upload, name: str | None) -> tuple[LibraryDocument, bool]:
        """Keep a content that has come wholly, as a document that is yet to be read; and whether it is a new one.

        Raises ApiError when there is no room for it.
        """
        if not upload.size:
            raise ApiError(400, f"{clean_name(name)} is empty", code="document_refused", parameter="file")
        self._check_room(upload.size)
        title = clean_name(name)
        file = upload.finish(title, "library")
        with self._lock:
            for known in self._loaded().values():
                if known.digest == file.digest and known.title == title and known.state != "refused":
                    self.files.delete(file)
                    return known, False
            document = self._new(file, title)
        return document, True

    def _new(self, file: StoredFile, title: str) -> LibraryDocument:
        taken = {d.name for d in self._loaded().values()} | {d.title for d in self._loaded().values()}
        stem, dot, ending = title.rpartition(".")
        shown, count = title, 1
        while shown in taken:  # titles tell documents apart, in prompts too
            count += 1
            shown = f"{stem} ({count}){dot}{ending}" if stem else f"{title} ({count})"
        document = LibraryDocument(
            id=f"doc-{secrets.token_hex(16)}",
            name=shown,
            title=shown,
            file=file.id,
            digest=file.digest,
            size=file.size,
            created=time.time(),
        )
        self._loaded()[document.id] = document
        self.save(document)
        return document

    def save(self, document: LibraryDocument) -> None:
        """Write what is known of a document, unless it was deleted meanwhile. Raises ApiError."""
        with self._lock:
            if document.id not in self._loaded():
                return
            try:
                with atomic_write(self._path(document.id, "json"), private=True) as file:
                    file.write(document.to_json())
            except JambaError as error:
                raise not_stored(error) from error

    def rename(self, document: LibraryDocument, name: str) -> None:
        """Show a document under another name. Raises ApiError."""
        document.name = clean_name(name, document.name)
        self.save(document)

    def keep_text(self, document: LibraryDocument, text: DocumentText) -> None:
        """Keep the text of a document. Raises ApiError."""
        with self._lock:
            if document.id not in self._loaded():
                return
            try:
                with atomic_write(self._path(document.id, "text"), private=True) as file:
                    file.write(text.to_json())
            except JambaError as error:
                raise not_stored(error) from error
            self._remember(document.id, text)
            self.changes += 1

    def text(self, document: LibraryDocument) -> DocumentText:
        """The text of a document that is ready. Raises ApiError for one that is not."""
        if document.state != "ready":
            why = document.message or f"{document.name} is still being read"
            raise ApiError(409, why, code="document_refused" if document.state == "refused" else "not_ready")
        with self._lock:
            if document.id in self._texts:
                self._texts.move_to_end(document.id)
                return self._texts[document.id]
        try:
            found = DocumentText.from_json(read_regular(self._path(document.id, "text")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ApiError(409, f"the text of {document.name} is lost: remove it, and add it again") from error
        with self._lock:
            self._remember(document.id, found)
        return found

    def find(self, name: str) -> LibraryDocument | None:
        """The document of that id, None when there is none."""
        with self._lock:
            return self._loaded().get(name)

    def find_text(self, name: str) -> DocumentText | None:
        """The text of the document of that id, None when there is none or it is not ready."""
        try:
            return self.text(self.get(name))
        except ApiError:
            return None

    def by_hash(self, digest: str) -> tuple[str, int] | None:
        """The id of the document with a part whose text has that hash (see ``text_hash``), and the part's number."""
        with self._lock:
            documents = [d for d in self._loaded().values() if d.state == "ready"]
            for document in documents:
                if document.id not in self._hashed:
                    found = self.find_text(document.id)
                    self._hashed.add(document.id)
                    for number, one in enumerate(found.hashes if found is not None else (), 1):
                        self._hashes.setdefault(one, (document.id, number))
            place = self._hashes.get(digest)
            return place if place is not None and place[0] in self._loaded() else None

    def delete(self, document: LibraryDocument) -> int:
        """Remove a document and all that was stored of it: its content, text, pictures, prefixes and replies; returns the bytes
        freed."""
        hashes: list[str] = []
        with contextlib.suppress(ApiError):
            hashes = self.text(document).hashes
        with self._lock:
            self._loaded().pop(document.id, None)
            self._texts.pop(document.id, None)
            self.changes += 1
            self._hashed.clear()  # another document may have the same part
            self._hashes.clear()
        shared = any(other.digest == document.digest for other in self.all())
        with contextlib.suppress(ApiError):
            self.files.delete(self.files.get(document.file))
        for ending in ("text", "ids", "json"):
            self._path(document.id, ending).unlink(missing_ok=True)
        freed = document.size
        if not shared:
            self.pictures.delete(document.digest)
        if self.keep and hashes:
            with contextlib.suppress(JambaError):
                freed += PrefixStore().clear(hashes)
        return freed

    def close(self) -> None:
        """Remove what is not to be kept."""
        if self._pictures is not None:
            self._pictures.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _loaded(self) -> dict[str, LibraryDocument]:
        if self._known is None:
            self._known = {}
            for path in (self.folder() / "documents").glob("doc-*.json"):
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    document = LibraryDocument.from_json(read_regular(path))
                    if _ID.fullmatch(document.id) and path.stem == document.id:
                        self._known[document.id] = document
        return self._known

    def _remember(self, name: str, text: DocumentText) -> None:
        self._texts[name] = text
        self._texts.move_to_end(name)
        size = sum(len(entry.text) for found in self._texts.values() for entry in found.entries)
        while size > _IN_MEMORY and len(self._texts) > 1:
            _, gone = self._texts.popitem(last=False)
            size -= sum(len(entry.text) for entry in gone.entries)

    def _check_room(self, size: int) -> None:
        documents = self.all()
        if len(documents) >= MOST_DOCUMENTS or sum(d.size for d in documents) + size > self.budget:
            limit = f"{self.budget >> 20:,} MB" if len(documents) < MOST_DOCUMENTS else f"{MOST_DOCUMENTS:,} documents"
            raise ApiError(507, f"the library has room for {limit}: remove documents", code="library_full")


def search(library: Library, query: str) -> list[tuple[LibraryDocument, dict[str, object] | None]]:
    """The documents whose name or text has every word of a query, each with an excerpt of its text, None where only the name
    has the words."""
    words = [word for word in query.casefold().split() if word][:16]
    found: list[tuple[LibraryDocument, dict[str, object] | None]] = []
    for document in library.all():
        named = all(word in document.name.casefold() for word in words)
        excerpt = None
        if document.state == "ready" and words:
            with contextlib.suppress(ApiError):
                excerpt = _excerpt(library.text(document), words)
        if named or excerpt is not None:
            found.append((document, excerpt))
    return found


# Characters of an excerpt before the word, few so that it is among the first lines, and after it.
_BEFORE, _AFTER = 24, 120


def _excerpt(text: DocumentText, words: Sequence[str]) -> dict[str, object] | None:
    """The place of the first word, on a page with all words if there is one, if the whole text has them all."""
    pages = [entry.text.casefold() for entry in text.entries]
    if not all(any(word in page for page in pages) for word in words):
        return None
    at = next((i for i, page in enumerate(pages) if all(word in page for word in words)), None)
    if at is None:
        at = next(i for i, page in enumerate(pages) if words[0] in page)
    page = text.entries[at].text
    where = page.lower().find(words[0])
    where = max(0, where)
    start, end = max(0, where - _BEFORE), min(len(page), where + len(words[0]) + _AFTER)
    if start and (space := page.find(" ", start, where)) >= 0:
        start = space + 1  # not within a word
    shown = " ".join(page[start:where].split())
    shown = ("… " if start else "") + shown + (" " if shown and page[where - 1 : where].isspace() else "")
    begin = len(shown)
    word = page[where : where + len(words[0])]
    rest = " ".join(page[where + len(word) : end].split())
    gap = " " if rest and page[where + len(word) : where + len(word) + 1].isspace() else ""
    return {
        "page": at + 1,
        "text": f"{shown}{word}{gap}{rest}{' …' if end < len(page) else ''}",
        "start": begin,
        "end": begin + len(word),
    }
