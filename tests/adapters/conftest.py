"""One resolver for the room's tests: building it is slow, and resolving leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters_builders import make_meta_model, make_store


@pytest.fixture(scope="session")
def resolver() -> PeftResolver:
    return PeftResolver(make_meta_model(), base_name="tiny")


@pytest.fixture
def store(tmp_path: Path, resolver: PeftResolver) -> Iterator[AdapterStore]:
    opened = make_store(tmp_path / "store", resolver)
    yield opened
    opened.close()
