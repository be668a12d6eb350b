"""/v1/files: uploads as forms, as OpenAI's and Anthropic's clients send them, or as raw bodies; lists, contents, deletion."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.files import StoredFile, Upload, clean_name
from jambacli.server.http import handler, json_response
from jambacli.server.multipart import MultipartReader, Part, boundary_of

# Seconds in which the next piece of a body must come; bytes that are written at once; bytes of a form's other fields.
_SILENCE, _PIECE, _MAX_VALUE = 60.0, 1 << 20, 64 << 10
_PURPOSE = "user_data"
# What a browser must never run in the name of this server.
_INERT = {"content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff"}


class FileRoutes:
    """The handlers."""

    def __init__(self, server: Server) -> None:
        self.files = server.files

    async def create(self, request: Request) -> Response:
        """POST /v1/files: a form with the fields "file" and "purpose"."""
        reader = MultipartReader(boundary_of(request.headers.get("content-type", "")))
        upload = await asyncio.to_thread(self.files.receive)
        with upload:
            name, values = await read_form(request, reader, upload)
            purpose = clean_name(values.get("purpose"), _PURPOSE)
            return self._answer(request, await asyncio.to_thread(upload.finish, name, purpose))

    async def put(self, request: Request) -> Response:
        """PUT /v1/files/NAME: the body is the file."""
        upload = await asyncio.to_thread(self.files.receive)
        with upload:
            async for piece in _pieces(request):
                await asyncio.to_thread(upload.write, piece)
            file = await asyncio.to_thread(upload.finish, request.path_params["name"], _PURPOSE)
            return self._answer(request, file)

    async def list(self, request: Request) -> Response:
        """GET /v1/files."""
        query = request.query_params
        files = await asyncio.to_thread(self.files.all)
        if query.get("order") == "asc":
            files.reverse()
        if purpose := query.get("purpose"):
            files = [file for file in files if file.purpose == purpose]
        after = query.get("after", query.get("after_id"))
        at = next((i + 1 for i, file in enumerate(files) if file.id == after), 0)
        limit = query.get("limit", "1000")
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= 10_000:
            raise bad_request("the parameter 'limit' must be a whole number from 1 to 10000", "limit")
        page = files[at : at + int(limit)]
        ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
        data = [_entry(request, file) for file in page]
        return json_response({"object": "list", "data": data, "has_more": at + len(page) < len(files), **ends})

    async def get(self, request: Request) -> Response:
        """GET /v1/files/ID."""
        return self._answer(request, await self._named(request))

    async def content(self, request: Request) -> Response:
        """GET /v1/files/ID/content."""
        file = await self._named(request)
        path: Path = self.files.path(file)
        if not await asyncio.to_thread(path.is_file):
            raise ApiError(404, f"there is no file {file.id!r}", code="file_not_found")
        shown = {**_INERT, "content-disposition": f"attachment; filename*=utf-8''{quote(file.name, safe='')}"}
        return FileResponse(path, media_type="application/octet-stream", headers=shown)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/files/ID."""
        file = await self._named(request)
        await asyncio.to_thread(self.files.delete, file)
        if _anthropic(request):
            return json_response({"id": file.id, "type": "file_deleted"})
        return json_response({"id": file.id, "object": "file", "deleted": True})

    async def _named(self, request: Request) -> StoredFile:
        return await asyncio.to_thread(self.files.get, request.path_params["name"])

    @staticmethod
    def _answer(request: Request, file: StoredFile) -> Response:
        return json_response(_entry(request, file))


def _anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _entry(request: Request, file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's API has it, or Anthropic's for its clients."""
    if _anthropic(request):
        created = datetime.datetime.fromtimestamp(file.created, datetime.UTC).isoformat().replace("+00:00", "Z")
        more = {"mime_type": "application/octet-stream", "size_bytes": file.size, "downloadable": True}
        return {"id": file.id, "type": "file", "filename": file.name, "created_at": created, **more}
    head = {"id": file.id, "object": "file", "bytes": file.size, "created_at": int(file.created)}
    return {**head, "filename": file.name, "purpose": file.purpose, "status": "processed"}


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """A body in pieces of about a megabyte. Raises ApiError when it stops coming."""
    gathered: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(_SILENCE):
                message = await request.receive()
        except TimeoutError:
            raise ApiError(408, f"nothing of the body came for {_SILENCE:.0f} seconds") from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client went away")
        gathered.append(message.get("body", b""))
        size += len(gathered[-1])
        more = message.get("more_body", False)
        if size >= _PIECE or not more:
            yield b"".join(gathered)
            gathered, size = [], 0
        if not more:
            return


async def read_form(request: Request, reader: MultipartReader, upload: Upload) -> tuple[str | None, dict[str, str]]:
    """Write the field "file" to ``upload``; returns its name and the other fields. Raises ApiError."""
    part: Part | None = None
    seen, name = False, None
    values: dict[str, bytearray] = {}
    async for piece in _pieces(request):
        for event in reader.feed(piece):
            if isinstance(event, Part):
                part = event
                if part.name == "file":
                    if seen:
                        raise bad_request("the form has several files", "file")
                    seen, name = True, part.filename
                else:
                    values.setdefault(part.name, bytearray())
            elif part is not None and part.name == "file":
                await asyncio.to_thread(upload.write, event)
            elif part is not None:
                values[part.name] += event
                if sum(map(len, values.values())) > _MAX_VALUE:
                    raise ApiError(413, "the form's fields are too long")
    if not reader.done:
        raise bad_request("the form ends too early")
    if not seen:
        raise bad_request("the form has no field 'file'", "file")
    return name, {key: value.decode("utf-8", "replace") for key, value in values.items()}


def file_routes(context: Server) -> list[Route]:
    """The routes of files."""
    server = FileRoutes(context)
    one = "/v1/files/{name}"
    return [
        Route("/v1/files", handler(server.create), methods=["POST"]),
        Route("/v1/files", handler(server.list), methods=["GET"]),
        Route(f"{one}/content", handler(server.content), methods=["GET"]),
        Route(one, handler(server.put), methods=["PUT"]),
        Route(one, handler(server.get), methods=["GET"]),
        Route(one, handler(server.delete), methods=["DELETE"]),
    ]
