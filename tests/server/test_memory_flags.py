"""What the flags of memory say reaches the rooms that keep to it: the real engine, a real model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.bench.zoo.model import adapter_dir, base_dir
from lorry.server.config import MemoryConfig, ModelConfig, ServerConfig
from lorry.server.engine_process import build_engine
from lorry.server.errors import ConfigError
from lorry.server.execution.start import load_runner
from lorry.server.seam import Shutdown
from lorry.server.seam_ends import LocalEnd
from lorry.tests.engine_builders import InProcess, make_submit, open_store, register

pytestmark = pytest.mark.slow

HOST_BYTES, LINK_BYTES_PER_S = 200 << 10, 1e6


def test_host_memory_and_the_emulated_link_are_as_large_and_fast_as_told(tmp_path: Path) -> None:
    """A flag that is dropped on its way: benchmarks of a slow link ran on a fast one, and more
    host memory than there is was an engine that died again and again.
    """
    memory = MemoryConfig(
        pool_bytes=2 << 20, host_bytes=HOST_BYTES, link_bytes_per_s=LINK_BYTES_PER_S
    )
    config = ServerConfig(ModelConfig(str(base_dir()), num_threads=1), memory).checked()
    runner = load_runner(config)
    with pytest.raises(ConfigError, match=rf"--host-bytes is {1 << 62}, .*{1 << 62} bytes") as told:
        build_engine(
            LocalEnd(), runner, replace(config, memory=replace(memory, host_bytes=1 << 62))
        )
    assert told.value.field == "--host-bytes"
    end = LocalEnd()
    live = InProcess(build_engine(end, runner, config), end, runner)
    folder = adapter_dir("upper")
    with closing(open_store(tmp_path / "store", base_dir(), runner)) as store:
        card = register(
            store,
            "upper",
            (folder / "adapter_config.json").read_bytes(),
            (folder / "adapter_model.safetensors").read_bytes(),
        )
        live.ask([make_submit(1, range(3, 9), card, max_new_tokens=1)])
    stats = live.engine.stats(pages=False).memory
    image_bytes = card.num_pages * runner.info().page_bytes
    assert (stats.host_capacity_bytes, stats.host_peak_bytes) == (HOST_BYTES, image_bytes)
    assert live.finished[1].timings.load_s >= image_bytes / LINK_BYTES_PER_S
    live.tell([Shutdown()])
    live.engine.run()
