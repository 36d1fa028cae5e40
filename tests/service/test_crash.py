"""kill -9 of a server in the middle of uploads: nothing acknowledged is lost or half there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lorry import Client
from lorry.proto.errors import LorryClientError
from lorry.tests.service_builders import running_server, start_server
from lorry.tests.service_shared import SharedServer

pytestmark = pytest.mark.slow


def test_a_server_killed_during_uploads_keeps_what_it_acknowledged(
    shared_server: SharedServer, tmp_path: Path
):
    """An acknowledged adapter lost, or half an adapter served."""
    acknowledged: dict[str, str] = {}
    model_dir, folders = shared_server.model_dir, shared_server.adapter_dirs
    server = start_server(model_dir, tmp_path / "store")
    server.wait_ready()
    first = threading.Event()

    def upload_all() -> None:
        with Client(server.address, timeout_s=120) as client:
            for turn in range(200):
                for adapter, folder in folders.items():
                    name = f"{adapter}-{turn}"
                    try:
                        card = client.adapters.upload(folder, name)
                    except LorryClientError:
                        return
                    acknowledged[card.name] = card.content_hash
                    if len(acknowledged) == 8:
                        first.set()

    uploader = threading.Thread(target=upload_all)
    uploader.start()
    assert first.wait(120)
    server.kill()
    uploader.join(60)
    with running_server(model_dir, tmp_path / "store") as again:
        with Client(again.address, timeout_s=120) as client:
            listed: dict[str, Any] = {card.name: card for card in client.adapters.list()}
            lost = acknowledged.keys() - listed.keys()
            assert not lost
            # The one on its way when the server died may be there too, but then whole.
            assert len(listed) <= len(acknowledged) + 1
            for name, card in listed.items():
                assert acknowledged.get(name, card.content_hash) == card.content_hash
            for name in sorted(listed)[:6]:
                assert client.complete("hello", adapter=name, max_new_tokens=4).token_ids
        assert list((tmp_path / "store" / "incoming").iterdir()) == []
        assert again.stop() == 0, "".join(again.output)
