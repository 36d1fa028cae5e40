"""The names others may rely on; a name added or lost here is a decision, not an accident."""

import importlib

import pytest

import lorry

EXPORTED = {
    "lorry": ["AsyncClient", "Client", "__version__"],
    "lorry.kernels.lora": [
        "TILE_ROWS",
        "FactorTiles",
        "LoraBackend",
        "LoraRoom",
        "LoraTable",
        "LoraWork",
        "Segment",
        "SiteShape",
        "Workspace",
        "add_lora",
        "choose_backend",
        "num_tiles",
        "row_stride",
        "workspace_row_bytes",
    ],
    "lorry.kernels.handover": [
        "MAX_SHARDS",
        "MAX_SITES",
        "SLIP_LEN",
        "Post",
        "Shard",
        "Slip",
        "await_add",
        "host_memory",
        "make_post",
        "outcome",
        "send_rows",
        "write_slip",
    ],
    "lorry.kernels.attention": [
        "AttentionBackend",
        "AttentionOptions",
        "AttentionRoom",
        "AttentionWork",
        "choose_backend",
        "clear_fresh",
        "paged_attention",
        "view_kv",
        "write_kv",
    ],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_members(name: str) -> None:
    """Users import these by name; each must be there and no other be promised."""
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(EXPORTED[name])
    for member in module.__all__:
        assert getattr(module, member) is not None


def test_unknown_member_is_an_attribute_error() -> None:
    """The root fetches its clients lazily; a misspelt name must not come back as None."""
    with pytest.raises(AttributeError, match="Clint"):
        _ = lorry.Clint  # type: ignore[attr-defined]
