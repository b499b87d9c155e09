"""Arbitrary events, and how many examples are tried.

The same examples come in every run (derandomized). To search further:

    EXAMPLES=20 python -m pytest tests/property      # twenty times as many, and other ones each time
"""

from __future__ import annotations

import os

import hypothesis
from hypothesis import strategies as st

from eventstore.model.event import Event

_FACTOR = int(os.environ.get("EXAMPLES", "1"))

FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999


def examples(count: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count * _FACTOR,
        derandomize=_FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# Everything that UTF-8 can carry but NUL, which Postgres does not take in a text.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
times = st.integers(FIRST_US, LAST_US) | st.sampled_from([FIRST_US, LAST_US, 0, -1, 1])

events = st.builds(
    Event,
    seq=st.integers(1, 2**63 - 1),
    event_id=st.binary(min_size=16, max_size=16),
    recorded_at_us=times,
    occurred_at_us=times,
    entity_type=texts,
    entity_id=texts,
    action=texts,
    field=texts,
    old_value=st.none() | texts,
    new_value=st.none() | texts,
    actor=texts,
    source=texts,
    workspace_id=st.none() | texts,
    metadata=st.none() | texts,
    hash=st.binary(min_size=32, max_size=32),
)
