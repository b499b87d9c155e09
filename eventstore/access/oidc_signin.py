"""Signing in at an OIDC issuer with a browser: the authorization code flow, with PKCE, state and nonce.

Of what the issuer hands out only the ID token is looked at, by `OidcVerifier.person_of`; the access token
beside it is for other programs and is thrown away unread.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.oauth2.client import OAuth2Client

from eventstore.access.issuer import OidcClient, is_safe_url
from eventstore.access.oidc import TIMEOUT_S, OidcVerifier, described_by
from eventstore.access.refusal import refused
from eventstore.errors import RetryError
from eventstore.model.access import Principal

__all__ = ["OidcSignIn", "Pending"]

_log = logging.getLogger(__name__)

_DESCRIBED_S = 300.0
_AWAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Pending:
    """One sign-in under way, kept by the browser that began it: nobody else's answer fits."""

    state: str
    nonce: str
    verifier: str


class OidcSignIn:
    """Sends people to the issuer, and takes in who comes back. Safe for many threads."""

    def __init__(self, client: OidcClient, verifier: OidcVerifier) -> None:
        self._client, self._verifier = client, verifier
        self._lock = threading.Lock()
        self._described: Mapping[str, Any] = {}
        self._described_until = self._away_until = 0.0

    def begin(self) -> tuple[str, Pending]:
        """Where to send the browser, and what it is to keep meanwhile.

        Raises:
            RetryError: the issuer does not answer.
        """
        where = self._endpoint("authorization_endpoint")
        pending = Pending(*(secrets.token_urlsafe(32) for _ in range(3)))
        with httpx.Client(timeout=TIMEOUT_S) as session:
            url, _ = self._oauth(session).create_authorization_url(
                where, state=pending.state, nonce=pending.nonce, code_verifier=pending.verifier
            )
        return url, pending

    def finish(self, pending: Pending, answer: Mapping[str, str]) -> tuple[Principal, int]:
        """Who has come back with the parameters `answer`, and until when the issuer's word holds, in µs.

        Raises:
            UnauthenticatedError: it is no answer to what was asked, or the issuer did not sign them in.
            ForbiddenError: they have no role or no tenant here.
            RetryError: the issuer does not answer.
        """
        state, code = answer.get("state", ""), answer.get("code", "")
        if not hmac.compare_digest(state.encode(), pending.state.encode()):
            raise self._refused("the answer is of another sign-in")
        if answer.get("iss", self._client.issuer) != self._client.issuer:
            raise self._refused("the answer is of another issuer")  # RFC 9207
        if not code or "error" in answer:
            raise self._refused(f"the issuer said {answer.get('error', 'nothing')!r}")
        id_token = self._token(code, pending.verifier).get("id_token")
        if not isinstance(id_token, str):
            raise self._refused("the issuer gave no ID token")
        return self._verifier.person_of(
            id_token.encode(), client_id=self._client.client_id, nonce=pending.nonce
        )

    def _token(self, code: str, verifier: str) -> Mapping[str, Any]:
        url = self._endpoint("token_endpoint")
        auth, more = self._credentials()
        try:
            with httpx.Client(timeout=TIMEOUT_S) as session:
                found: Mapping[str, Any] = self._oauth(session).fetch_token(
                    url, code=code, code_verifier=verifier, auth=auth, **more
                )
        except AuthlibBaseError as e:
            raise self._refused(f"the issuer said {e.error!r}") from e
        except (httpx.HTTPError, ValueError) as e:
            raise self._note_away(e) from e
        return found

    def _credentials(self) -> tuple[httpx.Auth, dict[str, str]]:
        """How the console says to the issuer who it is: in the header, or in fields of the form."""
        known, secret = self._client.client_id, self._client.secret
        if secret is None:
            return httpx.Auth(), {"client_id": known}
        methods = self._description().get("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods:
            return httpx.Auth(), {"client_id": known, "client_secret": secret}
        return httpx.BasicAuth(quote(known, safe=""), quote(secret, safe="")), {}

    def _oauth(self, session: httpx.Client) -> Any:
        return OAuth2Client(
            session,
            client_id=self._client.client_id,
            scope="openid",
            redirect_uri=self._client.redirect_uri,
            code_challenge_method="S256",
        )

    def _endpoint(self, name: str) -> str:
        url = self._description().get(name)
        if not isinstance(url, str) or not is_safe_url(url):
            raise self._note_away(ValueError(f"it names no https {name}"))
        return url

    def _description(self) -> Mapping[str, Any]:
        """What the issuer says of itself, asked now and then."""
        with self._lock:
            now = time.monotonic()
            if now < self._away_until:
                raise _away()
            if now >= self._described_until:
                try:
                    self._described = described_by(self._client.issuer)
                except (httpx.HTTPError, ValueError) as e:
                    raise self._note_away(e) from e
                self._described_until = now + _DESCRIBED_S
            return self._described

    def _note_away(self, error: Exception) -> RetryError:
        _log.warning("nobody can sign in at %s: %s", self._client.issuer, error)
        self._away_until, self._described_until = time.monotonic() + _AWAY_S, 0.0
        return _away()

    def _refused(self, why: str) -> Exception:
        """Why is told to the log alone."""
        _log.info("a sign-in at the issuer was refused: %s", why[:200])
        return refused()


def _away() -> RetryError:
    return RetryError(
        "the issuer cannot be asked now", hint="API keys work meanwhile", retry_after_s=int(_AWAY_S)
    )
