"""/v1/library/documents: uploads, lists and searches, pages and their pictures, where words stand, deletion."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.documents.quotes import find_quote
from jambacli.server.context import Server
from jambacli.server.errors import ApiError, bad_request, not_found
from jambacli.server.file_routes import read_form
from jambacli.server.files import clean_name
from jambacli.server.http import json_response, parse_json, read_bytes
from jambacli.server.multipart import MultipartReader, boundary_of
from jambacli.server.page.document import DocumentText, LibraryDocument, paragraphs_of
from jambacli.server.page.http import collection_routes, number, query_text
from jambacli.server.page.library import search
from jambacli.server.page.page import Page
from jambacli.server.page.pictures import LEAST, MOST

#: Bytes of a text that is pasted.
MAX_PASTE = 64 << 20
_LONGEST_QUOTE = 4000
# Bytes of a form besides its file.
_FORM = 1 << 20


class DocumentRoutes:
    """The handlers."""

    def __init__(self, server: Server, page: Page) -> None:
        self._server, self._page, self._library = server, page, page.library
        self._counting: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        """POST /v1/library/documents: a form with the field "file", or {"name", "text"}."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._library.largest + _FORM:
            raise ApiError(413, f"the file is larger than {self._library.largest:,} bytes", code="file_too_large")
        upload = await asyncio.to_thread(self._library.receive)
        with upload:
            if kind == "application/json":
                body = parse_json(await read_bytes(request.receive, MAX_PASTE))
                name, text = body.get("name"), body.get("text")
                if not isinstance(text, str) or not (name is None or isinstance(name, str)):
                    raise bad_request("the fields 'name' and 'text' must be texts", "text")
                name = clean_name(name, "pasted text")
                if "." not in name[-6:]:
                    name += ".txt"
                await asyncio.to_thread(upload.write, text.encode("utf-8", "replace"))
            else:
                reader = MultipartReader(boundary_of(request.headers.get("content-type", "")))
                name, _ = await read_form(request, reader, upload)
            document, new = await asyncio.to_thread(self._library.add, upload, name)
        if document.state == "extracting":
            self._page.extraction.begin(document)
        return await self._answer(document, 201 if new else 200)

    async def listed(self, request: Request) -> Response:
        """GET /v1/library/documents?q=."""
        query = query_text(request, "q")
        await self._page.started()

        def made() -> list[dict[str, Any]]:
            if query.strip():
                found = search(self._library, query)
                return [{**self._page.about(document), "excerpt": excerpt} for document, excerpt in found]
            return [self._page.about(document) for document in self._library.all()]

        documents = await asyncio.to_thread(made)
        return json_response({"documents": documents, "bytes": self._library.size, "budget": self._library.budget})

    async def get(self, request: Request) -> Response:
        """GET /v1/library/documents/ID."""
        document = await self._named(request)
        if document.state == "ready" and not document.tokens:
            task = asyncio.ensure_future(self._count(document))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
        return await self._answer(document)

    async def _count(self, document: LibraryDocument) -> None:
        text = await asyncio.to_thread(self._library.find_text, document.id)
        if text is not None:
            await self._page.measure.count(document, text)
            await asyncio.to_thread(self._library.save, document)

    async def change(self, request: Request) -> Response:
        """PATCH /v1/library/documents/ID: {"name"}."""
        document = await self._named(request)
        name = (await self._server.body(request)).get("name")
        if not isinstance(name, str) or not name.strip():
            raise bad_request("the field 'name' must be a text", "name")
        await asyncio.to_thread(self._library.rename, document, name)
        return await self._answer(document)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/library/documents/ID."""
        document = await self._named(request)
        self._page.extraction.cancel(document)
        freed = await asyncio.to_thread(self._library.delete, document)
        return json_response({"deleted": True, "freed": freed})

    async def page(self, request: Request) -> Response:
        """GET /v1/library/documents/ID/pages/N, or N.png."""
        name = request.path_params["number"]
        if name.endswith(".png"):
            return await self._picture(request, name.removesuffix(".png"))
        document, text, at = await self._part(request, name)
        part = text.document.parts[at - 1]
        return json_response(
            {
                "number": at,
                "count": len(text.document.parts),
                "label": text.label(at),
                "title": text.document.title(part),
                "text": part.text,
                "paragraphs": [{"start": start, "end": end} for start, end in paragraphs_of(part.text)],
                "picture": document.kind == "pdf",
            }
        )

    async def _picture(self, request: Request, name: str) -> Response:
        document, text, at = await self._part(request, name)
        if document.kind != "pdf":
            raise not_found(f"{document.name} has no pictures of pages")
        try:
            scale = float(request.query_params.get("scale", "1.5")[:16])
        except ValueError:
            scale = float("nan")
        if not LEAST <= scale <= MOST:
            raise bad_request(f"the parameter 'scale' must be a number from {LEAST} to {MOST}", "scale")
        content = await asyncio.to_thread(self._library.content, document)
        pictures = self._library.pictures
        data = await asyncio.to_thread(pictures.picture, content, document.digest, document.title, text.page(at), scale)
        etag = f'"{sha256(data).hexdigest()[:32]}"'
        headers = {"etag": etag, "cache-control": "private, max-age=86400"}
        if request.headers.get("if-none-match") == etag:
            return Response(None, 304, headers)
        return Response(data, 200, headers, "image/png")

    async def locate(self, request: Request) -> Response:
        """GET /v1/library/documents/ID/locate?quote=&page=."""
        document = await self._named(request)
        quote = query_text(request, "quote", _LONGEST_QUOTE)
        if not quote.strip():
            raise bad_request("the parameter 'quote' is required", "quote")
        text = await asyncio.to_thread(self._library.text, document)
        count = len(text.document.parts)
        page = number(request.query_params.get("page"), "page", 1, count)
        found = await asyncio.to_thread(_found, text, quote, page)
        boxes = None
        if document.kind == "pdf" and (found is not None or page is not None):
            at = found[0] if found is not None else page
            assert at is not None
            content = await asyncio.to_thread(self._library.content, document)
            boxes = await asyncio.to_thread(self._library.pictures.boxes, content, document.title, text.page(at), quote)
        if found is None and not boxes:
            return json_response({"found": False, "page": None, "boxes": None, "start": None, "end": None})
        at, start, end = found if found is not None else (page, None, None)
        return json_response({"found": True, "page": at, "boxes": boxes or None, "start": start, "end": end})

    async def _named(self, request: Request) -> LibraryDocument:
        return await asyncio.to_thread(self._library.get, request.path_params["id"])

    async def _part(self, request: Request, name: str) -> tuple[LibraryDocument, DocumentText, int]:
        document = await self._named(request)
        text = await asyncio.to_thread(self._library.text, document)
        count = len(text.document.parts)
        if not (name.isascii() and name.isdigit() and len(name) < 10 and 1 <= int(name) <= count):
            raise not_found(f"{document.name} has no page {name[:20]!r}; there are {count}")
        return document, text, int(name)

    async def _answer(self, document: LibraryDocument, status: int = 200) -> Response:
        return json_response(await asyncio.to_thread(self._page.about, document), status)


def _found(text: DocumentText, quote: str, page: int | None) -> tuple[int, int, int] | None:
    """The part and the characters of a quote; the first part that has it where none is named."""
    for at in [page] if page is not None else range(1, len(text.entries) + 1):
        place = find_quote(text.entries[at - 1].text, quote)
        if place is not None:
            return at, *place
    return None


def document_routes(server: Server, page: Page) -> list[Route]:
    """The routes of documents."""
    routes = DocumentRoutes(server, page)
    more = {("GET", "pages/{number}"): routes.page, ("GET", "locate"): routes.locate}
    return collection_routes("/v1/library/documents", "id", routes, more)
