"""How large an adapter may be: the operator's limits, handed down by whoever opens the store.

Plain data without a default for what the operator must decide. Knows no pool and no flags;
the store's process gets it from the server's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StoreLimits:
    max_upload_bytes: int  # of adapter_model.safetensors
    max_rank: int  # of any one module
    max_config_bytes: int = MIB  # of adapter_config.json
    max_open_uploads: int = 256  # at one time; each holds one open file
