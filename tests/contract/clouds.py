"""As much of Google Cloud Storage and Azure Blob Storage as a target uses, with their preconditions."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

__all__ = ["AzureHandler", "GoogleHandler"]

_CHANGED = datetime(2026, 1, 1, tzinfo=UTC)
_CHANGED_Z = "2026-01-01T00:00:00.000Z"


class _CloudHandler(BaseHTTPRequestHandler):
    """The server has `objects` (name → generation and bytes), `bucket`, `lock` and `seen`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    generations = count(1)
    lock = threading.Lock()

    @property
    def objects(self) -> dict[str, tuple[int, bytes]]:
        return self.server.objects  # type: ignore[attr-defined]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def create(self, name: str, data: bytes, *, only_new: bool) -> int | None:
        """Store an object; its generation. None: there is one already."""
        with self.lock:
            if only_new and name in self.objects:
                return None
            self.objects[name] = (next(self.generations), data)
            return self.objects[name][0]

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class GoogleHandler(_CloudHandler):
    """The JSON API of Google Cloud Storage."""

    def _json(self, found: object, status: int = 200) -> None:
        self.answer(status, json.dumps(found).encode(), Content_Type="application/json")

    def _resource(self, name: str) -> dict[str, object]:
        generation, data = self.objects[name]
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(data)), "etag": "e",
            "generation": str(generation), "timeCreated": _CHANGED_Z, "updated": _CHANGED_Z,
        }  # fmt: skip

    def do_POST(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        assert self.query["uploadType"] == "multipart"
        found = re.fullmatch(
            rb"--==0==\n.*?\n\n(\{.*?\})\n--==0==\n.*?\n\n(.*)\n--==0==--", self.body(), re.DOTALL
        )
        assert found is not None
        name = json.loads(found[1])["name"]
        if self.create(name, found[2], only_new=self.query.get("ifGenerationMatch") == "0") is None:
            self._json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
        else:
            self._json(self._resource(name))

    def do_GET(self) -> None:
        bucket, _, name = urlsplit(self.path).path.partition("/b/")[2].partition("/o")
        name = unquote(name.removeprefix("/"))
        if bucket != "bucket" or (name and name not in self.objects):
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)
        elif name and self.query.get("alt") == "media":
            self.answer(200, self.objects[name][1])
        elif name:
            self._json(self._resource(name))
        elif urlsplit(self.path).path.endswith("/o"):
            names = sorted(n for n in list(self.objects) if n.startswith(self.query.get("prefix", "")))
            self._json({"kind": "storage#objects", "items": [self._resource(n) for n in names]})
        else:
            self._json({"name": bucket})

    def do_DELETE(self) -> None:
        name = unquote(urlsplit(self.path).path.partition("/o/")[2])
        if self.objects.pop(name, None) is None:
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)
        else:
            self.answer(204)


class AzureHandler(_CloudHandler):
    """The REST API of Azure Blob Storage, path style: /account/container/blob."""

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path.removeprefix("/account/bucket").removeprefix("/"))

    def _fail(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.answer(status, body, Content_Type="application/xml", x_ms_error_code=code)

    def _of(self, name: str) -> dict[str, str]:
        return {
            "ETag": f'"{self.objects[name][0]}"', "Last_Modified": format_datetime(_CHANGED, usegmt=True),
            "x_ms_blob_type": "BlockBlob", "Content_Type": "application/octet-stream",
            "x_ms_creation_time": format_datetime(_CHANGED, usegmt=True),
        }  # fmt: skip

    def do_PUT(self) -> None:
        data = self.body()
        self.server.seen.append(str(self.headers))  # type: ignore[attr-defined]
        if self.create(self._name(), data, only_new=self.headers.get("If-None-Match") == "*") is None:
            self._fail(409, "BlobAlreadyExists")
        else:
            of = {k: v for k, v in self._of(self._name()).items() if k in ("ETag", "Last_Modified")}
            self.answer(201, **of, x_ms_request_server_encrypted="true")

    def do_GET(self) -> None:
        name = self._name()
        if not urlsplit(self.path).path.startswith("/account/bucket"):
            self._fail(404, "ContainerNotFound")
        elif self.query.get("comp") == "list":
            self._list()
        elif not name:
            self.answer(200, ETag='"0"', Last_Modified=format_datetime(_CHANGED, usegmt=True))
        elif name not in self.objects:
            self._fail(404, "BlobNotFound")
        else:
            data = self.objects[name][1]
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("x-ms-range", ""))
            if self.command == "HEAD":
                self.answer(200, **{**self._of(name), "Content_Length": str(len(data))})
            elif asked is None:
                self.answer(200, data, **self._of(name))
            elif not data:
                self._fail(416, "InvalidRange")
            else:
                first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
                content_range = f"bytes {first}-{last}/{len(data)}"
                self.answer(206, data[first : last + 1], **self._of(name), Content_Range=content_range)

    do_HEAD = do_GET  # noqa: N815

    def _list(self) -> None:
        names = sorted(n for n in list(self.objects) if n.startswith(self.query.get("prefix", "")))
        blobs = "".join(
            f"<Blob><Name>{escape(n)}</Name><Properties><Etag>{self.objects[n][0]}</Etag>"
            f"<Content-Length>{len(self.objects[n][1])}</Content-Length><BlobType>BlockBlob</BlobType>"
            f"<Last-Modified>{format_datetime(_CHANGED, usegmt=True)}</Last-Modified></Properties></Blob>"
            for n in names
        )
        root = 'EnumerationResults ContainerName="bucket"'
        text = f"<{root}><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        self.answer(
            200, b'<?xml version="1.0" encoding="utf-8"?>' + text.encode(), Content_Type="application/xml"
        )

    def do_DELETE(self) -> None:
        if self.objects.pop(self._name(), None) is None:
            self._fail(404, "BlobNotFound")
        else:
            self.answer(202)
