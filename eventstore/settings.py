"""Settings: one frozen object from the environment (`EVENTSTORE_*`). No other part reads the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventstore.errors import SetupError

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """Where the store keeps things, and its limits."""

    model_config = SettingsConfigDict(env_prefix="EVENTSTORE_", frozen=True, extra="ignore")

    database_url: str | None = Field(
        None,
        description="A Postgres server (15 or later), as postgresql://user:password@host/database. "
        "Without it, an embedded one runs under the home.",
    )
    home: Path = Field(Path(".eventstore"), description="Folder of the embedded Postgres and the archive.")
    archive_url: str | None = Field(
        None, description="Where archived windows go; file://<home>/archive unless set."
    )
    host: str = Field("127.0.0.1", description="Address that `eventstore serve` listens on.")
    port: int = Field(
        8080, ge=0, le=65535, description="Port that `eventstore serve` listens on; 0 picks one."
    )
    body_bytes_max: int = Field(64 * 2**20, gt=0, le=2**30, description="The largest request body, in bytes.")
    value_bytes_max: int = Field(
        256 * 2**10,
        gt=0,
        le=16 * 2**20,
        description="The largest old_value, new_value or metadata of an event, in bytes of JSON.",
    )
    append_workers: int = Field(4, ge=1, le=64, description="Tenants that are written to at the same time.")

    @property
    def resolved_home(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def resolved_archive_url(self) -> str:
        return self.archive_url or (self.resolved_home / "archive").as_uri()


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        SetupError: a variable has a value that it cannot have.
    """
    try:
        return Settings()
    except ValidationError as e:
        problem = e.errors()[0]
        name = "EVENTSTORE_" + "_".join(str(part) for part in problem["loc"]).upper()
        raise SetupError(f"{name}: {problem['msg']}", hint="see docs/reference/settings.md") from e
