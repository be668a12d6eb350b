"""Reads multipart/form-data piece by piece, in bounded memory, whatever a client sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from jambacli.server.errors import ApiError, bad_request

# Limits: of a part's headers and of what is before the first part, in bytes; parts of a form; characters of a boundary.
_MAX_HEADERS, _MAX_PREAMBLE, _MAX_PARTS, _MAX_BOUNDARY = 16 << 10, 64 << 10, 64, 200


@dataclass(frozen=True)
class Part:
    """The beginning of a form's field. ``filename``: what the client calls the file, None for a plain value."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type. Raises ApiError when it is no form."""
    message = Message()
    message["content-type"] = content_type.replace("\r", "").replace("\n", "")
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > _MAX_BOUNDARY:
        raise bad_request("the body must be multipart/form-data with a boundary")
    return boundary.encode("utf-8", "replace")


class MultipartReader:
    """Takes a body in pieces of any size and gives its parts: a ``Part`` at the beginning of each, then its bytes."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # So that a boundary at the very beginning is found too.
        self._buffer = bytearray(b"\r\n")
        self._state = "preamble"
        self._skipped = self._parts = 0

    @property
    def done(self) -> bool:
        """Whether the last part has ended."""
        return self._state == "done"

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """The next piece of the body. Raises ApiError for what is not a form."""
        self._buffer += data
        while True:
            if self._state == "done":
                self._buffer.clear()  # what follows the last part is ignored
                return
            if self._state == "headers":
                part = self._headers()
                if part is None:
                    return
                yield part
                continue
            at = self._buffer.find(self._delimiter)
            # A delimiter may begin at the end of what has come; after it come two characters that say what follows.
            complete = at >= 0 and len(self._buffer) >= at + len(self._delimiter) + 2
            ready = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
            if ready:
                piece = bytes(self._buffer[:ready])
                del self._buffer[:ready]
                if self._state == "body":
                    yield piece
                else:
                    self._skipped += len(piece)
                    if self._skipped > _MAX_PREAMBLE:
                        raise bad_request("the form does not begin with its boundary")
            if not complete:
                return
            piece = self._after_delimiter()
            if piece and self._state == "body":
                yield piece

    def _after_delimiter(self) -> bytes:
        """Go on behind the delimiter that the buffer begins with; returns it where it is only text that looks like one."""
        size = len(self._delimiter)
        follows = bytes(self._buffer[size : size + 2])
        if follows == b"--":
            self._state = "done"
            return b""
        if follows != b"\r\n":
            del self._buffer[:size]
            return self._delimiter
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise bad_request(f"the form has more than {_MAX_PARTS} fields")
        # The line break before the headers stays: a part without any has nothing but an empty line.
        del self._buffer[:size]
        self._state = "headers"
        return b""

    def _headers(self) -> Part | None:
        """The part that begins, None while its headers are not complete."""
        end = self._buffer.find(b"\r\n\r\n")
        if end > _MAX_HEADERS or (end < 0 and len(self._buffer) > _MAX_HEADERS):
            raise ApiError(400, "a field of the form has headers that are too long")
        if end < 0:
            return None
        text = bytes(self._buffer[:end]).decode("utf-8", "replace")
        del self._buffer[: end + 4]
        self._state = "body"
        for line in text.split("\r\n"):
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                return _part(value)
        raise bad_request("a field of the form has no Content-Disposition")


def _part(disposition: str) -> Part:
    message = Message()
    message["content-disposition"] = " ".join(disposition.split())
    name = message.get_param("name", header="content-disposition")
    if message.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise bad_request("a field of the form has no name")
    try:
        return Part(name, message.get_filename())
    except (ValueError, LookupError) as error:  # an encoding of no known name
        raise bad_request("a field of the form has a file name that cannot be read") from error
