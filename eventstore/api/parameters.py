"""What every route asks of its query parameters: that it has them, and each is given once."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant

from eventstore.clock import parse_time_us
from eventstore.errors import InputError

__all__ = ["known_parameters", "time_us"]


async def known_parameters(request: Request) -> None:
    """Refuse query parameters that a route does not have: a mistyped filter would widen the answer."""
    known = _query_parameters(request.scope["route"].dependant)
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = sorted(set(given) - known)
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise InputError(f"there is no parameter {unknown[0]!r} here", hint=f"known are: {names}")
    for name, value in request.query_params.multi_items():
        if given.count(name) > 1:
            raise InputError(f"{name} is given more than once", hint="ask once for each value")
        if "\ufffd" in value:
            raise InputError(f"{name} is not UTF-8", hint="percent-encode the UTF-8 bytes of the value")


def time_us(name: str, text: str | None) -> int | None:
    """The moment that a parameter names, in microseconds since 1970 UTC; None: it is not given.

    Raises:
        InputError: it is no time.
    """
    if text is None:
        return None
    try:
        # A '+' of an offset that was sent unescaped arrives as a blank.
        return parse_time_us(text.replace(" ", "+") if "T" in text else text)
    except InputError as e:
        raise InputError(f"{name}: {e.message}", hint=e.hint) from e


def _query_parameters(dependant: Dependant) -> set[str]:
    names = {parameter.alias for parameter in dependant.query_params}
    return names.union(*(_query_parameters(inner) for inner in dependant.dependencies))
