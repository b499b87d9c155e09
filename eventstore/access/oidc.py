"""Persons sign in elsewhere: bearer tokens of an OIDC issuer, checked against the keys that it publishes.

What a person may do is in two claims: one gives the role, one the tenant, or `*` for the whole deployment. A
token that lacks one of them gives nothing; nothing is taken for granted from a claim that is missing.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt

from eventstore.access.issuer import OidcConfig, is_safe_url
from eventstore.access.refusal import refused
from eventstore.clock import US_PER_S
from eventstore.errors import ForbiddenError, RetryError, UnauthenticatedError
from eventstore.model.access import PERMISSIONS, Principal, Role
from eventstore.model.tenant import is_tenant_id

__all__ = ["DEPLOYMENT", "TIMEOUT_S", "OidcVerifier", "described_by"]

_log = logging.getLogger(__name__)

DEPLOYMENT = "*"
# Signatures by a private key alone: with these, nothing that the issuer publishes can be used to sign.
_ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
_LEEWAY_S = 30
TIMEOUT_S = 5.0
_TOKEN_BYTES_MAX = 16_384
_SUBJECT_CHARACTERS_MAX = 200
_DISCOVERY_BYTES_MAX = 2**20
# What comes of a web server that is away, or answers with anything but a set of keys.
_NO_KEYS = (jwt.PyJWTError, httpx.HTTPError, OSError, ValueError, TypeError, AttributeError)


class OidcVerifier:
    """Checks tokens. Published keys are kept for `keys_s` seconds, and asked for anew when a token names one
    that is not among them, once in `unknown_key_s` at the most. Safe for many threads."""

    def __init__(
        self,
        config: OidcConfig,
        *,
        keys_s: float = 300.0,
        unknown_key_s: float = 10.0,
        away_s: float = 5.0,
    ) -> None:
        self._config = config
        self._keys_s, self._unknown_key_s, self._away_s = keys_s, unknown_key_s, away_s
        self._lock = threading.Lock()
        self._client: jwt.PyJWKClient | None = None
        self._away_until = 0.0

    def principal_of(self, token: bytes) -> Principal:
        """The person that a token is of.

        Raises:
            UnauthenticatedError: the token does not hold, whatever is wrong with it.
            ForbiddenError: it holds, and gives no role or no tenant.
            RetryError: the issuer's keys cannot be had now.
        """
        return self._principal(self._claims(token, self._config.audience))

    def person_of(self, id_token: bytes, *, client_id: str, nonce: str) -> tuple[Principal, int]:
        """The person who has just signed in with the issuer, for the client `client_id` and by the request
        that `nonce` was sent with; and when the token ends, in µs. Of what the issuer gives, this is the ID
        token: it is made for the client that asked, and says who signed in.

        Raises:
            as `principal_of`
        """
        claims = self._claims(id_token, client_id)
        given = claims.get("nonce")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
            raise _refused("it is of another sign-in")
        if claims.get("azp", client_id) != client_id:
            raise _refused("it is of another client")
        return self._principal(claims), int(claims["exp"]) * US_PER_S

    def _claims(self, token: bytes, audience: str) -> Mapping[str, Any]:
        if len(token) > _TOKEN_BYTES_MAX:
            raise _refused("it is too long")
        try:
            header = jwt.get_unverified_header(token)
            # Told by the token, so looked at before anybody is asked for a key.
            if header.get("alg") not in _ALGORITHMS:
                raise _refused(f"alg {header.get('alg')!r}")
            kid = header.get("kid")
            if not isinstance(kid, str):
                raise _refused("it names no key")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self._key(kid),
                algorithms=_ALGORITHMS,
                audience=audience,
                issuer=self._config.issuer,
                leeway=_LEEWAY_S,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub"],
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.PyJWTError as e:
            raise _refused(str(e)) from e
        return claims

    def _key(self, kid: str) -> jwt.PyJWK:
        """The published key of this name.

        Raises:
            UnauthenticatedError: there is none.
            RetryError: the issuer does not answer, or not with keys.
        """
        with self._lock:
            if time.monotonic() < self._away_until:
                raise _away("it did not answer a moment ago")
            try:
                client = self._client = self._client or self._discover()
                client.get_jwk_set()
            except _NO_KEYS as e:
                raise self._note_away(e) from e
            try:
                # Of the set that was just had; only an unknown kid makes it ask again.
                return client.get_signing_key(kid)
            except jwt.PyJWKClientConnectionError as e:
                raise self._note_away(e) from e
            except jwt.PyJWKClientError as e:
                raise _refused(f"no key {kid!r}") from e
            except _NO_KEYS as e:
                raise self._note_away(e) from e

    def _note_away(self, error: Exception) -> RetryError:
        _log.warning("the keys of %s cannot be had: %s", self._config.issuer, error)
        self._away_until = time.monotonic() + self._away_s
        self._client = None  # its address may have changed: look it up again
        return _away("its keys cannot be had")

    def _discover(self) -> jwt.PyJWKClient:
        """A client of the address where the issuer says, or the settings say, that its keys are."""
        url = self._config.jwks_url
        if url is None:
            url = described_by(self._config.issuer).get("jwks_uri")
            if not isinstance(url, str) or not is_safe_url(url):
                raise ValueError("the issuer names no https address of keys")
        return jwt.PyJWKClient(
            url, lifespan=self._keys_s, timeout=TIMEOUT_S, cooldown_duration=self._unknown_key_s
        )

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject.strip() or not subject.isprintable():
            raise _refused("sub is no name")
        role = _widest(self._roles(_values(claims, self._config.role_claim)))
        tenants = _values(claims, self._config.tenant_claim)
        if role is None:
            raise ForbiddenError(
                "the token gives no role",
                hint=f"its claim {self._config.role_claim!r} must name one, or one that covers the others",
            )
        if len(tenants) != 1 or not (tenants[0] == DEPLOYMENT or is_tenant_id(tenants[0])):
            raise ForbiddenError(
                "the token gives no tenant",
                hint=f"its claim {self._config.tenant_claim!r} must name one, or {DEPLOYMENT!r} for all",
            )
        tenant = None if tenants[0] == DEPLOYMENT else tenants[0]
        return Principal(f"oidc:{subject[:_SUBJECT_CHARACTERS_MAX]}", role, tenant, person=True)

    def _roles(self, values: list[str]) -> set[Role]:
        """The roles among the claim's values; what else it says is of other programs."""
        if self._config.roles:
            return {self._config.roles[value] for value in values if value in self._config.roles}
        return {role for role in Role if role.value in values}


def described_by(issuer: str) -> Mapping[str, Any]:
    """What an issuer says of itself.

    Raises:
        httpx.HTTPError, ValueError: it does not answer, or not as an issuer of this name.
    """
    where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    answer = httpx.get(where, timeout=TIMEOUT_S, follow_redirects=False)
    answer.raise_for_status()
    if len(answer.content) > _DISCOVERY_BYTES_MAX:
        raise ValueError(f"{where} is too long")
    said = answer.json()
    if not isinstance(said, dict) or said.get("issuer") != issuer:
        raise ValueError(f"{where} is not of this issuer")
    return said


def _widest(roles: set[Role]) -> Role | None:
    """Of several roles the one that may do all that the others may; None: there is no such."""
    together = frozenset().union(*(PERMISSIONS[role] for role in roles))
    return next((role for role in roles if PERMISSIONS[role] == together), None)


def _values(claims: Mapping[str, Any], path: str) -> list[str]:
    """The texts of a claim, which may be one or a list; a claim's own name may have dots."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    given = found if isinstance(found, list) else [found]
    return sorted({value for value in given if isinstance(value, str)})


def _refused(why: str) -> UnauthenticatedError:
    """Why is told to the log alone."""
    _log.info("a token was refused: %s", why[:200])
    return refused()


def _away(why: str) -> RetryError:
    return RetryError(
        f"the issuer of tokens cannot be asked: {why}", hint="API keys work meanwhile", retry_after_s=5
    )
