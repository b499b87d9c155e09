"""Exports: asked for, made in the background, and downloaded."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from eventstore.console.view import render
from eventstore.console.visit import Visit, visit
from eventstore.model.access import Permission

__all__ = ["router"]

router = APIRouter()


@router.get("/t/{tenant}/exports")
def show(request: Request, me: Annotated[Visit, visit(Permission.EXPORT)]) -> Response:
    """The page."""
    return render(request, me, "exports.html")
