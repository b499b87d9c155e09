"""Signing in and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from eventstore.console.view import render
from eventstore.console.visit import Visit, visit
from eventstore.model.access import Permission

__all__ = ["router"]

router = APIRouter()


@router.get("/sign-in")
def show(request: Request, me: Annotated[Visit, visit(Permission.READ)]) -> Response:
    """The page."""
    return render(request, me, "signin.html")
