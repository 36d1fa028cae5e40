"""What an operator is told before a server has started anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorry.adapters.store_files import StoreLock
from lorry.server.config import CostConfig, ModelConfig, ServerConfig, ServiceConfig
from lorry.server.errors import ConfigError
from lorry.server.supervisor import serve


def test_a_model_that_is_not_there_is_told_before_anything_starts(tmp_path: Path):
    """Broken: a typing error in a path is told as a rule about repository ids, seconds later."""
    for model in (str(tmp_path / "nowhere"), "./none/such/dir", "no-such-model-id"):
        config = ServerConfig(ModelConfig(model), service=ServiceConfig(store=tmp_path / "s"))
        with pytest.raises(ConfigError, match="no such directory") as caught:
            serve(config)
        assert caught.value.field == "--model"
        assert not (tmp_path / "s").exists()


def test_a_directory_without_a_model_is_told_so(tmp_path: Path):
    """Broken: the parent of a model's directory is refused with a list of tokenizer libraries."""
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        serve(ServerConfig(ModelConfig(str(tmp_path)), service=ServiceConfig(store=tmp_path / "s")))


def test_a_store_that_cannot_be_had_is_told_before_anything_starts(tmp_path: Path):
    """Broken: a second server on one store loads its model for half a minute to be refused."""
    (tmp_path / "config.json").write_text("{}")
    held = StoreLock(tmp_path / "s")
    (tmp_path / "file").write_text("")
    try:
        for store, words in (
            (tmp_path / "s", "in use"),
            (tmp_path / "file" / "s", "cannot be used"),
        ):
            config = ServerConfig(ModelConfig(str(tmp_path)), service=ServiceConfig(store=store))
            with pytest.raises(ConfigError, match=words) as caught:
                serve(config)
            assert caught.value.field == "--store"
    finally:
        held.close()


def test_a_step_log_that_is_there_already_is_refused(tmp_path: Path):
    """Steps of two servers in one file, and no way to tell them apart."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "old.csv").write_text("")
    for path, words in (("old.csv", "File exists"), ("none/new.csv", "No such file")):
        config = ServerConfig(
            ModelConfig(str(tmp_path)),
            service=ServiceConfig(store=tmp_path / "s"),
            cost=CostConfig(step_log=tmp_path / path),
        )
        with pytest.raises(ConfigError, match=f"--step-log is .*{path}.*{words}") as caught:
            serve(config)
        assert caught.value.field == "--step-log"
