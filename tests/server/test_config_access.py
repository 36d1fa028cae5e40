"""What a server that others can reach is asked for, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorry.server.config import ModelConfig, ServerConfig, ServiceConfig
from lorry.server.errors import ConfigError

TOKENS: dict[str, Any] = {"tokens": Path("t")}
TLS: dict[str, Any] = {"tls_cert": Path("c"), "tls_key": Path("k")}
ALL = "0.0.0.0"


def check(**service: Any) -> None:
    ServerConfig(ModelConfig("m"), service=ServiceConfig(**service)).checked()


@pytest.mark.parametrize(
    "service",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "127.8.8.8"},
        TOKENS,
        TLS,
        {"host": ALL, "allow_remote": True},
        {"host": ALL, "allow_remote": True} | TLS,
        {"host": ALL} | TOKENS | TLS,
        {"host": ALL, "tls_client_ca": Path("ca")} | TOKENS | TLS,
        {"host": ALL, "tls_client_ca": Path("ca")} | TLS,
        {"host": ALL, "behind_tls": True} | TOKENS,
    ],
    ids=str,
)
def test_what_is_safe_or_asked_for_in_words_starts(service: dict[str, Any]) -> None:
    """Broken: a server that is set up rightly refuses to start."""
    check(**service)


@pytest.mark.parametrize(
    ("service", "field", "words"),
    [
        ({"host": ALL}, "--host", "--tokens.*--allow-remote"),
        ({"host": "::"}, "--host", "--allow-remote"),
        ({"host": "gpu-7.example.org"}, "--host", "--allow-remote"),
        ({"host": "localhost.example.org"}, "--host", "--allow-remote"),
        ({"host": ""}, "--host", "--allow-remote"),
        ({"host": ALL} | TLS, "--host", "--tokens, or --tls-client-ca"),
        ({"host": ALL, "tls_client_ca": Path("ca")}, "--tls-cert", "--tls-client-ca is given"),
        ({"host": ALL, "behind_tls": True}, "--host", "--tokens"),
        ({"host": ALL} | TOKENS, "--host", "--tls-cert.*--behind-tls"),
        ({"host": ALL, "allow_remote": True} | TOKENS, "--host", "--tls-cert"),
        ({"tls_cert": Path("c")}, "--tls-key", "--tls-cert is given and --tls-key is not"),
        ({"tls_key": Path("c")}, "--tls-cert", "--tls-key is given and --tls-cert is not"),
        ({"tls_client_ca": Path("c")}, "--tls-cert", "--tls-client-ca is given"),
    ],
    ids=str,
)
def test_what_is_open_or_read_on_the_way_is_refused(
    service: dict[str, Any], field: str, words: str
) -> None:
    """Broken: a server on a network lets everybody upload, or takes tokens that all can read."""
    with pytest.raises(ConfigError, match=words) as caught:
        check(**service)
    assert caught.value.field == field
