"""An OIDC issuer on loopback, for tests: it publishes keys, signs tokens, and signs people in."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from eventstore.access.issuer import OidcConfig

__all__ = ["Issuer"]

HERE = "127.0.0.1"


class Issuer:
    """A web server on loopback that publishes keys, and signs tokens with them. People sign in at
    `/authorize`, which `authorize` stands for: it gives the code that `/token` takes once."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.asked: list[str] = []
        self.status = 200
        self.said_issuer: str | None = None
        self.said_keys: str | None = None
        self.client = ("console", "s3cret/+")  # its id and its secret
        self.auth_methods: list[str] | None = None
        self.redeemed: list[dict[str, str]] = []
        self._codes: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = json.dumps(issuer.answer(self.path)).encode()
                self.send_response(issuer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
                issuer.asked.append(self.path)
                status, said = issuer.redeem(form, self.headers.get("authorization"))
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HERE, 0), Handler)
        self.url = f"http://{HERE}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.add("rsa", rsa.generate_private_key(65537, 2048), "RS256")
        self.add("ec", ec.generate_private_key(ec.SECP256R1()), "ES256")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, kid: str, key: Any, alg: str) -> None:
        self.keys[kid] = (key, alg)

    def answer(self, path: str) -> dict[str, Any]:
        if path != "/keys":
            keys = self.said_keys or f"{self.url}/keys"
            said: dict[str, Any] = {
                "issuer": self.said_issuer or self.url,
                "jwks_uri": keys,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            }
            if self.auth_methods is not None:
                said["token_endpoint_auth_methods_supported"] = self.auth_methods
            return said
        published = []
        for kid, (key, alg) in self.keys.items():
            algorithm = jwt.get_algorithm_by_name(alg)
            published.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": alg})  # type: ignore[call-overload]
        return {"keys": published}

    def authorize(self, url: str, **changed: Any) -> dict[str, str]:
        """Somebody signs in at the page of this address: with what they are sent back. `changed` are claims
        of the ID token."""
        assert url.startswith(f"{self.url}/authorize?")
        asked = dict(parse_qsl(urlsplit(url).query))
        code = secrets.token_urlsafe(8)
        self._codes[code] = (asked, {"aud": self.client[0], "nonce": asked["nonce"], **changed})
        return {"code": code, "state": asked["state"], "iss": self.url}

    def redeem(self, form: dict[str, str], authorization: str | None) -> tuple[int, dict[str, Any]]:
        """The answer to who brings a code: it must be the client that asked, with the secret of its PKCE."""
        self.redeemed.append(form)
        if authorization is not None:
            name, secret = b64decode(authorization.removeprefix("Basic ")).decode().split(":")
            client = (unquote(name), unquote(secret))
        else:
            client = (form.get("client_id", ""), form.get("client_secret", ""))
        if client != self.client:
            return 401, {"error": "invalid_client"}
        asked, claims = self._codes.pop(form.get("code", ""), ({}, {}))
        proof = urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if proof.rstrip(b"=").decode() != asked.get("code_challenge"):
            return 400, {"error": "invalid_grant"}
        if asked["redirect_uri"] != form.get("redirect_uri") or asked["code_challenge_method"] != "S256":
            return 400, {"error": "invalid_grant"}
        id_token = self.token(**claims)
        return 200, {"access_token": "for others", "token_type": "Bearer", "id_token": id_token}

    def claims(self, **changed: Any) -> dict[str, Any]:
        now_s = int(time.time())
        claims = {
            "iss": self.url,
            "aud": "eventstore",
            "sub": "ann@example",
            "iat": now_s,
            "exp": now_s + 300,
            "eventstore_role": "compliance",
            "eventstore_tenant": "acme",
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str = "rsa", *, header: dict[str, Any] | None = None, **changed: Any) -> str:
        key, alg = self.keys[kid]
        return jwt.encode(self.claims(**changed), key, alg, headers={"kid": kid, **(header or {})})

    def config(self, **more: Any) -> OidcConfig:
        return OidcConfig(self.url, "eventstore", **more)
