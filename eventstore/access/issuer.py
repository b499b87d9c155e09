"""The issuer whose word is taken, as the settings name it: values, without anything that asks it.

Apart from what checks tokens and signs people in, since every command reads the settings, and few serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from eventstore.access.loopback import names_loopback
from eventstore.model.access import Role

__all__ = ["OidcClient", "OidcConfig", "is_safe_url"]


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """Whose tokens are taken, and what their claims mean. `jwks_url` None: the issuer's own description names
    it. A claim may lie within others: `realm_access.roles`. `roles` says what the role claim's values mean;
    empty: they are the roles' own names."""

    issuer: str
    audience: str
    jwks_url: str | None = None
    role_claim: str = "eventstore_role"
    tenant_claim: str = "eventstore_tenant"
    roles: Mapping[str, Role] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OidcClient:
    """The console as the issuer knows it. `secret` None: a public client. `redirect_uri` is where the issuer
    sends people back to."""

    issuer: str
    client_id: str
    secret: str | None
    redirect_uri: str

    def __repr__(self) -> str:
        return f"OidcClient({self.client_id!r} of {self.issuer!r})"  # never the secret


def is_safe_url(url: str) -> bool:
    """Whether what comes from there is what its owner sent: https, or http on this machine."""
    try:
        found = urlsplit(url)
    except ValueError:
        return False
    return bool(found.hostname) and (
        found.scheme == "https" or (found.scheme == "http" and names_loopback(found.hostname or ""))
    )
