"""The one answer to credentials that do not hold."""

from __future__ import annotations

from eventstore.errors import UnauthenticatedError

__all__ = ["refused"]


def refused() -> UnauthenticatedError:
    """The same for a wrong secret, an unknown key, one that was revoked or has expired, and any token that
    does not hold: whoever tries learns nothing from it."""
    return UnauthenticatedError(
        "the credentials do not hold",
        hint="send Authorization: Bearer KEY, with an API key or a token that is in force",
    )
