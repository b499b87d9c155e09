"""Settings: one frozen object from the environment (`EVENTSTORE_*`). No other part reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventstore.errors import InputError, SetupError
from eventstore.model.policy import DEFAULT_TARGET, parse_duration_us
from eventstore.model.schedule import parse_schedule

__all__ = ["Settings", "load_settings"]


def _duration(text: str) -> str:
    try:
        parse_duration_us(text)
    except InputError as e:
        raise ValueError(str(e)) from e
    return text


def _schedule(text: str) -> str:
    try:
        parse_schedule(text)
    except InputError as e:
        raise ValueError(str(e)) from e
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Schedule = Annotated[str, AfterValidator(_schedule)]


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
        None,
        description="The archive target named `archive`, where windows go unless a policy says otherwise: "
        "file://, s3://, gs://, az://. file://<home>/archive unless set.",
    )
    targets: dict[str, str] = Field(
        default_factory=dict,
        description="Further archive targets for the tiers of policies, as a JSON object of names and URLs, "
        'e.g. {"deep": "s3://bucket/deep"}.',
    )
    signing_key_file: Path | None = Field(
        None,
        description="The Ed25519 key that signs certificates, as PEM; <home>/keys/signing.pem unless set, "
        "made at the first start. All processes of a deployment need the same.",
    )
    cache_bytes_max: int = Field(
        4 * 2**30,
        ge=0,
        description="How much of the home's cache folder segments of remote targets may take, in bytes.",
    )
    policy_grace: Duration = Field(
        "7d",
        description="How long after its confirmation a policy change that destroys sooner comes into force.",
    )
    expiry_notice: Duration = Field(
        "1d",
        description="How long after it was first listed as expired a window is destroyed by the scheduler.",
    )
    lease: Duration = Field(
        "30s", description="How long a worker that does not answer keeps the window that it works on."
    )
    workers_max: int = Field(
        4, ge=1, le=64, description="Windows that may be worked on at once in the whole deployment."
    )
    retention_schedule: Schedule = Field(
        "every 15m", description="When retention runs: `every 15m`, a cron line in UTC, or `never`."
    )
    expiry_schedule: Schedule = Field("30 3 * * *", description="When expired windows are destroyed.")
    precreate_schedule: Schedule = Field(
        "every 10m", description="When tables of coming windows are made ahead."
    )
    scrub_schedule: Schedule = Field("every 1h", description="When segments are read again and compared.")
    scrub_every: Duration = Field("90d", description="How often each segment is read again.")
    scrub_bytes_per_s: int = Field(
        8 * 2**20, gt=0, description="How fast a scrub reads at the most, in bytes a second."
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

    @field_validator("targets")
    @classmethod
    def _own_name(cls, targets: dict[str, str]) -> dict[str, str]:
        if DEFAULT_TARGET in targets:
            raise ValueError(f"the target {DEFAULT_TARGET!r} is what EVENTSTORE_ARCHIVE_URL names")
        return targets

    @property
    def target_urls(self) -> dict[str, str]:
        """Every archive target's URL by its name."""
        return {DEFAULT_TARGET: self.resolved_archive_url, **self.targets}

    @property
    def resolved_key_file(self) -> Path:
        return self.signing_key_file or self.resolved_home / "keys" / "signing.pem"

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
