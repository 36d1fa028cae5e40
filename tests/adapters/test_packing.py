"""Weights into pages and back, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.adapters.errors import AdapterRefused
from lorry.adapters.image import ImageLayout, ImageSpec, Site, SiteRank, matrix_tiles, plan_image
from lorry.adapters.image_file import ImageDamaged, open_image, read_image, write_image
from lorry.adapters.packing import DTYPES, pack_image, pack_measured
from lorry.tests.adapters_builders import make_old_image, make_spec


def unpack(spec: ImageSpec, layout: ImageLayout, pages: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """The reference: read each weight alone, by the rule's own words."""
    flat = pages.reshape(-1)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for tiles in layout.sites:
        site = spec.sites[tiles.site]
        matrices: list[Tensor] = []
        for offsets, width in ((tiles.a_offsets, site.in_width), (tiles.b_offsets, site.out_width)):
            matrix = torch.full((tiles.rank, width), float("nan"), dtype=pages.dtype)
            blocks = matrix_tiles(tiles.rank, width, layout.tile_cols)
            for start, tile in zip(offsets, blocks, strict=True):
                for row in range(tile.num_rows):
                    first = start + row * tile.row_stride
                    matrix[tile.row + row, tile.col : tile.col + tile.num_cols] = flat[
                        first : first + tile.num_cols
                    ]
            matrices.append(matrix)
        found[tiles.site] = (matrices[0], matrices[1].T)
    return found


def make_weights(
    spec: ImageSpec, ranks: list[SiteRank], seed: int = 0
) -> dict[int, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        entry.site: (
            torch.randn(entry.rank, spec.sites[entry.site].in_width, generator=generator),
            torch.randn(spec.sites[entry.site].out_width, entry.rank, generator=generator),
        )
        for entry in ranks
    }


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(4, 40).map(lambda count: count * 64),
    st.sampled_from(sorted(DTYPES)),
)
def test_weights_come_back_as_they_were_cast(
    ranks: list[int], page_elements: int, dtype: str
) -> None:
    """A tile copied to a wrong place gives wrong tokens without an error."""
    sites = tuple(Site(f"m{i}", i, 37 + 50 * i, 130 - 20 * i) for i in range(len(ranks)))
    spec = make_spec(page_elements=page_elements, dtype=dtype, sites=sites)
    wanted = [SiteRank(index, rank, 1.0) for index, rank in enumerate(ranks)]
    weights = make_weights(spec, wanted)
    layout = plan_image(spec, wanted)
    pages = pack_image(spec, layout, weights)
    assert pages.shape == (layout.num_pages, page_elements)
    for site, (lora_a, lora_b) in unpack(spec, layout, pages).items():
        assert torch.equal(lora_a, weights[site][0].to(DTYPES[dtype]))
        assert torch.equal(lora_b, weights[site][1].to(DTYPES[dtype]))


def test_padding_is_zero() -> None:
    """A kernel may read a row's padding; garbage there would reach the sum."""
    spec = make_spec(sites=(Site("m", 0, 37, 19),))
    ranks = [SiteRank(0, 3, 1.0)]
    layout = plan_image(spec, ranks)
    weights = make_weights(spec, ranks)
    pages = pack_image(spec, layout, weights)
    kept = sum(int((tensor != 0).sum()) for pair in weights.values() for tensor in pair)
    assert int((pages != 0).sum()) == kept == layout.used_elements


def test_rounding_error_is_the_largest_change() -> None:
    """The card would promise more exactness than there is."""
    spec = make_spec(dtype="bfloat16", sites=(Site("m", 0, 8, 8),))
    ranks = [SiteRank(0, 2, 1.0)]
    lora_a, lora_b = torch.ones(2, 8), torch.ones(8, 2)
    lora_b[5, 1] = 1.0 + 2**-9
    packed = pack_measured(spec, plan_image(spec, ranks), {0: (lora_a, lora_b)})
    assert packed.rounding_error == 2**-9


def test_overflow_of_the_cast_is_refused() -> None:
    """Infinity in a weight makes every token of the request NaN."""
    spec = make_spec(dtype="float16", sites=(Site("m", 0, 8, 8),))
    ranks = [SiteRank(0, 2, 1.0)]
    weights = {0: (torch.full((2, 8), 70000.0), torch.ones(8, 2))}
    with pytest.raises(AdapterRefused, match=r"70000.*float16.*65504") as caught:
        pack_image(spec, plan_image(spec, ranks), weights)
    assert caught.value.field == "m.lora_A.weight"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_image_file_gives_back_layout_and_pages(tmp_path: Path, dtype: str) -> None:
    """A scale or an offset changed on its way through the file would go unnoticed."""
    spec = make_spec(dtype=dtype)
    ranks = [SiteRank(1, 5, 2 / 3), SiteRank(9, 20, 0.1)]
    layout = plan_image(spec, ranks)
    pages = pack_image(spec, layout, make_weights(spec, ranks))
    write_image(tmp_path / "image", layout, pages)
    image = read_image(tmp_path / "image")
    assert image.layout == layout
    assert torch.equal(image.pages, pages)
    assert image.pages.dtype == pages.dtype


def test_every_damage_to_an_image_file_is_seen(tmp_path: Path) -> None:
    """A flipped bit on the disk would become wrong tokens."""
    spec = make_spec()
    ranks = [SiteRank(0, 2, 1.0)]
    layout = plan_image(spec, ranks)
    path = tmp_path / "image"
    write_image(path, layout, pack_image(spec, layout, make_weights(spec, ranks)))
    whole = path.read_bytes()
    scale = whole.index(b"scale")
    damages = [whole[:-1], whole[:100], b"", whole + b"x"]
    for at in (len(whole) - 5, len(whole) // 2, scale + 9):
        damages.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(ImageDamaged):
            read_image(path)
    path.unlink()
    with pytest.raises(ImageDamaged):
        read_image(path)


def test_layers_are_proven_as_they_are_read(tmp_path: Path) -> None:
    """What a step computes with before the whole file is read must be what was written; a layer
    would be served with a flipped bit, or a good one refused for the next one's."""
    spec, path = make_spec(page_elements=256), tmp_path / "image"
    ranks = [SiteRank(site, 3, 1.0) for site in range(len(spec.sites))]
    layout = plan_image(spec, ranks)
    write_image(path, layout, pack_image(spec, layout, make_weights(spec, ranks)))
    whole = path.read_bytes()
    home_bytes = len(whole) - layout.num_pages * 256 * 4
    assert len(set(layout.landed_pages)) == len(layout.landed_pages) == 2
    for page in range(layout.num_pages):
        at = home_bytes + page * 256 * 4 + 17
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        proven = [0]
        with open_image(path) as image, pytest.raises(ImageDamaged, match="up to layer"):
            memory = torch.empty(layout.num_pages, 256)
            proven += image.read_groups(memory, range(layout.num_pages))
        good = sum(landed <= page for landed in layout.landed_pages)
        assert proven[-1] == good, (page, layout.landed_pages)


def test_a_layout_is_proven_before_anybody_goes_by_it(tmp_path: Path) -> None:
    """A flipped offset would have a kernel read past the image, before its last page is read."""
    layout = plan_image(make_spec(), [SiteRank(0, 2, 1.0)])
    path = tmp_path / "image"
    write_image(path, layout, torch.ones(layout.num_pages, make_spec().page_elements))
    whole = path.read_bytes()
    at = whole.index(b"a_offsets") + len('a_offsets\\": [')
    assert whole[at : at + 1] == b"0"
    path.write_bytes(whole[:at] + b"8" + whole[at + 1 :])
    with pytest.raises(ImageDamaged, match="layout"), open_image(path):
        pass


@pytest.mark.parametrize("kept", [slice(-1, None), slice(0, -1)], ids=["old", "lacking"])
def test_an_image_of_the_older_form_counts_as_damaged(tmp_path: Path, kept: slice) -> None:
    """Its layers cannot be proven one by one; it is packed again."""
    layout = plan_image(make_spec(), [SiteRank(0, 2, 1.0)])
    write_image(tmp_path / "image", layout, torch.ones(1, make_spec().page_elements))
    make_old_image(tmp_path / "image", kept)
    with pytest.raises(ImageDamaged):
        read_image(tmp_path / "image")
