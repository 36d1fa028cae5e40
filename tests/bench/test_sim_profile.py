"""A profile says where each of its numbers is from, or it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.bench.sim.parts import adapter_card, cost_model
from lorry.bench.sim.profile import (
    PROFILES_DIR,
    UNITS,
    Coefficient,
    Profile,
    ProfileRefused,
    checked,
    named_profile,
    read_profile,
    step_names,
    write_profile,
)
from lorry.bench.workload.records import WorkloadAdapter
from lorry.server.scheduling.step_work import NO_WORK, StepWork
from lorry.tests.sim_builders import SMALL, make_profile


def with_one(name: str, **changes: float | str) -> Profile:
    profile = make_profile()
    one = replace(profile.coefficients[name], **changes)  # pyright: ignore[reportArgumentType]
    return replace(profile, coefficients={**profile.coefficients, name: one})


def test_a_written_profile_is_read_back_equal(tmp_path: Path) -> None:
    """What a calibration writes is what a simulation runs on."""
    path = tmp_path / "small.json"
    write_profile(make_profile(), path)
    assert read_profile(path) == make_profile()


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES_DIR.glob("*.json")))
def test_each_profile_of_the_folder_is_whole(name: str) -> None:
    """A committed file with a number from nowhere would be believed."""
    profile = named_profile(name)
    assert profile.name == name
    assert all(one.source for one in profile.coefficients.values())
    assert profile.assumed  # none of them was measured by us in every number


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source": ""}, "without a source"),
        ({"source": "assumed: "}, "without a source"),
        ({"unit": "ms"}, "must be in 's per step'"),
        ({"value": -1.0}, "at least 0"),
        ({"value": float("nan")}, "finite"),
    ],
)
def test_a_coefficient_without_origin_or_sense_is_refused(
    changes: dict[str, float | str], complaint: str
) -> None:
    """The name, the value and the limit are in the message."""
    with pytest.raises(ProfileRefused, match="steps_s") as refused:
        checked(with_one("steps_s", **changes))
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [("num_pages", 1.5, "whole"), ("tokens_per_page", 0, "more than 0"), ("ttft_s", 0, "more")],
)
def test_a_server_that_cannot_be_is_refused(name: str, value: float, complaint: str) -> None:
    """Half a page, or a bound that nobody can meet."""
    with pytest.raises(ProfileRefused, match=f"{name} is .*{complaint}"):
        checked(with_one(name, value=value))


def test_missing_and_unknown_coefficients_are_named() -> None:
    """A default for what a file leaves out would be a number without a source."""
    held = dict(make_profile().coefficients)
    held["warp_s"] = held.pop("load_s")
    with pytest.raises(ProfileRefused, match=r"missing \['load_s'\], unknown \['warp_s'\]"):
        checked(Profile("x", "", held))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "name": "x", "about": ""}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    """A broken file gets an error that names it."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ProfileRefused, match=r"x\.json"):
        read_profile(path)


def test_a_file_with_a_stray_field_is_refused(tmp_path: Path) -> None:
    """What nobody reads may have been meant."""
    path = tmp_path / "x.json"
    write_profile(make_profile(), path)
    data = json.loads(path.read_text())
    data["coefficients"]["load_s"]["spread"] = 0.1
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileRefused, match="spread"):
        read_profile(path)


def test_names_that_are_not_there_are_answered_with_those_that_are() -> None:
    with pytest.raises(ProfileRefused, match="a100-7b"):
        named_profile("h900")


def test_each_coefficient_of_a_step_is_that_of_its_field() -> None:
    """In another order a prompt's cost would be a decode's."""
    cost = cost_model(make_profile())
    for field, name in zip(StepWork._fields, step_names(), strict=True):
        assert cost.step_s(NO_WORK._replace(**{field: 1})) == SMALL[name]
    assert cost.load_time_s(1_000_000) == 0.004 + 0.5


def test_an_adapters_pages_follow_from_its_rank() -> None:
    """300 bytes a rank, a tenth more in pages of 1024."""
    card = adapter_card(WorkloadAdapter("a", 16, 1.0), make_profile())
    assert (card.weight_bytes, card.max_rank, card.num_pages) == (4800, 16, 6)


def test_coefficients_are_units_one_for_one() -> None:
    assert set(SMALL) == set(UNITS)
    assert Coefficient(1.0, "s", "assumed: x").source.startswith("assumed")
