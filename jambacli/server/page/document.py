"""A document of the library: what is known of it, and its text in the parts in which it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jambacli.cache.prefix_store import text_hash
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.load import Document
from jambacli.documents.pages import DocumentEntry, entries_of


@dataclass
class LibraryDocument:
    """What the library keeps of a document beside its content and its text.

    ``title``: the name that prompts have, which stays when ``name`` is changed: what was read stays known. ``file``: the id
    of its content in the FileStore. ``state``: "extracting", "ready" or "refused" with a ``message``. ``parts``,
    ``characters``: of its text. ``tokens``: by model.
    """

    id: str
    name: str
    title: str
    file: str
    digest: str
    size: int
    created: float
    kind: str = ""
    state: str = "extracting"
    message: str = ""
    unit: str = ""
    parts: int = 0
    characters: int = 0
    remarks: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The bytes of its file."""
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "surrogatepass")

    @staticmethod
    def from_json(data: bytes) -> LibraryDocument:
        """The document in the bytes of a file. Raises ValueError or TypeError for other bytes."""
        value = json.loads(data.decode("utf-8", "surrogatepass"))
        return LibraryDocument(**{f.name: value[f.name] for f in fields(LibraryDocument) if f.name in value})


@dataclass(frozen=True)
class DocumentText:
    """The text of a document, and its parts as a prompt has them."""

    document: Document
    entries: tuple[DocumentEntry, ...]

    @staticmethod
    def of(document: Document) -> DocumentText:
        """The text of a document that was read."""
        return DocumentText(document, tuple(entries_of([document])))

    @property
    def hashes(self) -> list[str]:
        """The hashes under which the prefix store knows the parts."""
        return [text_hash(entry.text) for entry in self.entries]

    def label(self, number: int) -> str:
        """What the place of part ``number`` (from 1) is called, "" for a document of one part."""
        return self.document.where(self.document.parts[number - 1])

    def page(self, number: int) -> int:
        """The number that a part has in the file: of a PDF's page, which is another one where pages were empty."""
        return self.document.parts[number - 1].first

    def to_json(self) -> bytes:
        """The bytes of its file."""
        return json.dumps(asdict(self.document), ensure_ascii=False).encode("utf-8", "surrogatepass")

    @staticmethod
    def from_json(data: bytes) -> DocumentText:
        """The text in the bytes of a file. Raises ValueError, KeyError or TypeError for other bytes."""
        value: dict[str, Any] = json.loads(data.decode("utf-8", "surrogatepass"))
        parts = tuple(DocumentPart(**part) for part in value["parts"])
        remarks = tuple(value["remarks"])
        return DocumentText.of(Document(value["name"], value["unit"], parts, remarks, whole=bool(value["whole"])))


def paragraphs_of(text: str) -> list[tuple[int, int]]:
    """The characters of each paragraph of a text: what is between blank lines."""
    found = []
    start = 0
    for block in text.split("\n\n"):
        if stripped := block.strip():
            first = start + block.index(stripped[0])
            found.append((first, first + len(stripped)))
        start += len(block) + 2
    return found
