"""Messages as plain data, for JSON."""

from __future__ import annotations

import json

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto.errors import InvalidRequest
from lorry.proto.messages import generate_request, to_plain


def test_plain_keeps_numbers_numbers_and_unset_fields_present() -> None:
    """protobuf's JSON writes 64-bit numbers as strings and drops zeros; scripts trip on both."""
    stats = pb.Stats(
        tokens_decode_total=2**40,
        pages=[pb.PageRun(kind=pb.PAGE_KIND_KV, count=3, owner="17")],
    )
    plain = json.loads(json.dumps(to_plain(stats)))
    assert plain["tokens_decode_total"] == 2**40
    assert plain["num_running"] == 0
    assert plain["residents"] == []
    assert plain["pages"] == [{"kind": "PAGE_KIND_KV", "count": 3, "owner": "17"}]
    assert set(plain) == {field.name for field in pb.Stats.DESCRIPTOR.fields}


def test_plain_shows_bytes_as_hex_and_nests() -> None:
    """bytes are no JSON; a message inside a message must not stay one."""
    upload = pb.UploadRequest(header=pb.UploadHeader(name="x", config_json=b"\x01\xff"))
    plain = json.loads(json.dumps(to_plain(upload)))
    assert plain["header"]["config_json"] == "01ff"


def test_text_that_utf8_cannot_carry_is_refused_by_field() -> None:
    """protobuf would raise a UnicodeEncodeError from deep inside."""
    with pytest.raises(InvalidRequest) as caught:
        generate_request("ab\ud800")
    assert caught.value.field == "text"
    assert "character 2" in caught.value.message
