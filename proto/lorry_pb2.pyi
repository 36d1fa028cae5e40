from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class Place(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACE_UNSPECIFIED: _ClassVar[Place]
    PLACE_DISK: _ClassVar[Place]
    PLACE_HOST: _ClassVar[Place]
    PLACE_LOADING: _ClassVar[Place]
    PLACE_POOL: _ClassVar[Place]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_POOL: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]

class PageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAGE_KIND_FREE: _ClassVar[PageKind]
    PAGE_KIND_KV: _ClassVar[PageKind]
    PAGE_KIND_ADAPTER: _ClassVar[PageKind]
    PAGE_KIND_CACHED: _ClassVar[PageKind]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
PLACE_UNSPECIFIED: Place
PLACE_DISK: Place
PLACE_HOST: Place
PLACE_LOADING: Place
PLACE_POOL: Place
TIER_UNSPECIFIED: Tier
TIER_POOL: Tier
TIER_HOST: Tier
PAGE_KIND_FREE: PageKind
PAGE_KIND_KV: PageKind
PAGE_KIND_ADAPTER: PageKind
PAGE_KIND_CACHED: PageKind

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages", "template_json")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_JSON_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    template_json: str
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., template_json: _Optional[str] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "seed", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    seed: int
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, temperature: _Optional[float] = ..., seed: _Optional[int] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("ttft_s", "tpot_s")
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    ttft_s: float
    tpot_s: float
    def __init__(self, ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("text", "token_ids", "chat", "adapter", "max_new_tokens", "sampling", "slo", "stop_token_ids", "ignore_eos", "stop", "include_stop", "n", "logprobs", "prompt_logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    chat: Chat
    adapter: str
    max_new_tokens: int
    sampling: Sampling
    slo: Slo
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    stop: _containers.RepeatedScalarFieldContainer[str]
    include_stop: bool
    n: int
    logprobs: int
    prompt_logprobs: int
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., adapter: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., stop: _Optional[_Iterable[str]] = ..., include_stop: bool = ..., n: _Optional[int] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("chunk", "final", "prompt_logprobs")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    final: Final
    prompt_logprobs: PromptLogprobs
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., final: _Optional[_Union[Final, _Mapping]] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobs, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("text", "token_ids", "index", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("first_position", "logprobs")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, first_position: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob", "top")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: bytes
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[RankedToken]
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[RankedToken, _Mapping]]] = ...) -> None: ...

class RankedToken(_message.Message):
    __slots__ = ("token_id", "token", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: bytes
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ...) -> None: ...

class Final(_message.Message):
    __slots__ = ("reason", "usage", "timing", "seed", "adapter_version", "index", "stop_string", "stop_token_id")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    usage: Usage
    timing: Timing
    seed: int
    adapter_version: int
    index: int
    stop_string: str
    stop_token_id: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., seed: _Optional[int] = ..., adapter_version: _Optional[int] = ..., index: _Optional[int] = ..., stop_string: _Optional[str] = ..., stop_token_id: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "preemptions", "cached_tokens", "cold_start")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    preemptions: int
    cached_tokens: int
    cold_start: ColdStart
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., cold_start: _Optional[_Union[ColdStart, _Mapping]] = ...) -> None: ...

class ColdStart(_message.Message):
    __slots__ = ("way", "reason", "predicted_s", "measured_s")
    WAY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_S_FIELD_NUMBER: _ClassVar[int]
    way: str
    reason: str
    predicted_s: float
    measured_s: float
    def __init__(self, way: _Optional[str] = ..., reason: _Optional[str] = ..., predicted_s: _Optional[float] = ..., measured_s: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_s", "load_s", "prefill_s", "ttft_s", "tpot_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    load_s: float
    prefill_s: float
    ttft_s: float
    tpot_s: float
    def __init__(self, queue_s: _Optional[float] = ..., load_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("name", "config_json", "size_bytes", "sha256", "base_fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    config_json: bytes
    size_bytes: int
    sha256: str
    base_fingerprint: str
    def __init__(self, name: _Optional[str] = ..., config_json: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., base_fingerprint: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "version", "content_hash", "size_bytes", "max_rank", "num_pages", "weight_bytes", "target_modules", "created_unix_s", "notes", "rounding_error", "residency")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_ERROR_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    content_hash: str
    size_bytes: int
    max_rank: int
    num_pages: int
    weight_bytes: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    created_unix_s: float
    notes: _containers.RepeatedScalarFieldContainer[str]
    rounding_error: float
    residency: Residency
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., content_hash: _Optional[str] = ..., size_bytes: _Optional[int] = ..., max_rank: _Optional[int] = ..., num_pages: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., created_unix_s: _Optional[float] = ..., notes: _Optional[_Iterable[str]] = ..., rounding_error: _Optional[float] = ..., residency: _Optional[_Union[Residency, _Mapping]] = ...) -> None: ...

class Residency(_message.Message):
    __slots__ = ("place", "pinned", "num_pages", "num_users", "requests_total", "pool_hits_total", "loads_total", "reads_total", "load_s")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    POOL_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    READS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    place: Place
    pinned: bool
    num_pages: int
    num_users: int
    requests_total: int
    pool_hits_total: int
    loads_total: int
    reads_total: int
    load_s: float
    def __init__(self, place: _Optional[_Union[Place, str]] = ..., pinned: bool = ..., num_pages: _Optional[int] = ..., num_users: _Optional[int] = ..., requests_total: _Optional[int] = ..., pool_hits_total: _Optional[int] = ..., loads_total: _Optional[int] = ..., reads_total: _Optional[int] = ..., load_s: _Optional[float] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("name", "tier", "pin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    tier: Tier
    pin: bool
    def __init__(self, name: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ..., pin: bool = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("prefix", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token", "total")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    total: int
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class DeleteAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteAdapterResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Info(_message.Message):
    __slots__ = ("version", "model", "architecture", "dtype", "device", "fingerprint", "max_model_len", "max_rank", "num_pages", "page_bytes", "tokens_per_page", "sites", "self_proof", "default_ttft_s", "default_tpot_s", "default_max_new_tokens", "has_chat_template", "vocab_size", "limits", "policy", "prefix_cache", "site_shapes", "cold_start")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_PAGE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SELF_PROOF_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    SITE_SHAPES_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    architecture: str
    dtype: str
    device: str
    fingerprint: str
    max_model_len: int
    max_rank: int
    num_pages: int
    page_bytes: int
    tokens_per_page: int
    sites: _containers.RepeatedScalarFieldContainer[str]
    self_proof: str
    default_ttft_s: float
    default_tpot_s: float
    default_max_new_tokens: int
    has_chat_template: bool
    vocab_size: int
    limits: RequestLimits
    policy: str
    prefix_cache: bool
    site_shapes: _containers.RepeatedCompositeFieldContainer[SiteShape]
    cold_start: str
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., fingerprint: _Optional[str] = ..., max_model_len: _Optional[int] = ..., max_rank: _Optional[int] = ..., num_pages: _Optional[int] = ..., page_bytes: _Optional[int] = ..., tokens_per_page: _Optional[int] = ..., sites: _Optional[_Iterable[str]] = ..., self_proof: _Optional[str] = ..., default_ttft_s: _Optional[float] = ..., default_tpot_s: _Optional[float] = ..., default_max_new_tokens: _Optional[int] = ..., has_chat_template: bool = ..., vocab_size: _Optional[int] = ..., limits: _Optional[_Union[RequestLimits, _Mapping]] = ..., policy: _Optional[str] = ..., prefix_cache: bool = ..., site_shapes: _Optional[_Iterable[_Union[SiteShape, _Mapping]]] = ..., cold_start: _Optional[str] = ...) -> None: ...

class SiteShape(_message.Message):
    __slots__ = ("name", "in_width", "out_width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IN_WIDTH_FIELD_NUMBER: _ClassVar[int]
    OUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    in_width: int
    out_width: int
    def __init__(self, name: _Optional[str] = ..., in_width: _Optional[int] = ..., out_width: _Optional[int] = ...) -> None: ...

class RequestLimits(_message.Message):
    __slots__ = ("n", "logprobs", "stop_strings", "stop_chars", "stop_token_ids", "logit_bias", "chat_messages", "template_bytes")
    N_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    STOP_CHARS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    CHAT_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    n: int
    logprobs: int
    stop_strings: int
    stop_chars: int
    stop_token_ids: int
    logit_bias: int
    chat_messages: int
    template_bytes: int
    def __init__(self, n: _Optional[int] = ..., logprobs: _Optional[int] = ..., stop_strings: _Optional[int] = ..., stop_chars: _Optional[int] = ..., stop_token_ids: _Optional[int] = ..., logit_bias: _Optional[int] = ..., chat_messages: _Optional[int] = ..., template_bytes: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: bool
    def __init__(self, pages: bool = ...) -> None: ...

class PageRun(_message.Message):
    __slots__ = ("kind", "count", "owner")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    kind: PageKind
    count: int
    owner: str
    def __init__(self, kind: _Optional[_Union[PageKind, str]] = ..., count: _Optional[int] = ..., owner: _Optional[str] = ...) -> None: ...

class ResidentAdapter(_message.Message):
    __slots__ = ("name", "version", "num_pages", "loading", "num_users")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    num_pages: int
    loading: bool
    num_users: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., num_pages: _Optional[int] = ..., loading: bool = ..., num_users: _Optional[int] = ...) -> None: ...

class CostCoef(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class CostModel(_message.Message):
    __slots__ = ("source", "step_coefs", "judged_steps", "r2", "mape", "learnt_loads", "load_s", "load_bytes_per_s", "read_bytes_per_s")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STEP_COEFS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_STEPS_FIELD_NUMBER: _ClassVar[int]
    R2_FIELD_NUMBER: _ClassVar[int]
    MAPE_FIELD_NUMBER: _ClassVar[int]
    LEARNT_LOADS_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    source: str
    step_coefs: _containers.RepeatedCompositeFieldContainer[CostCoef]
    judged_steps: int
    r2: float
    mape: float
    learnt_loads: int
    load_s: float
    load_bytes_per_s: float
    read_bytes_per_s: float
    def __init__(self, source: _Optional[str] = ..., step_coefs: _Optional[_Iterable[_Union[CostCoef, _Mapping]]] = ..., judged_steps: _Optional[int] = ..., r2: _Optional[float] = ..., mape: _Optional[float] = ..., learnt_loads: _Optional[int] = ..., load_s: _Optional[float] = ..., load_bytes_per_s: _Optional[float] = ..., read_bytes_per_s: _Optional[float] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("num_running", "num_waiting", "pages_total", "pages_free", "pages_kv", "pages_adapter", "steps_total", "tokens_prefill_total", "tokens_decode_total", "requests_finished_total", "requests_failed_total", "preemptions_total", "adapter_loads_total", "adapter_evictions_total", "engine_restarts_total", "uptime_s", "residents", "pages", "adapters_registered", "host_bytes", "requests_cancelled_total", "requests_aborted_total", "cost_model", "memory", "cold_starts")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    PAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAGES_FREE_FIELD_NUMBER: _ClassVar[int]
    PAGES_KV_FIELD_NUMBER: _ClassVar[int]
    PAGES_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PREFILL_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DECODE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FINISHED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FAILED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_LOADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESTARTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    RESIDENTS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_CANCELLED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_ABORTED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    COLD_STARTS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    pages_total: int
    pages_free: int
    pages_kv: int
    pages_adapter: int
    steps_total: int
    tokens_prefill_total: int
    tokens_decode_total: int
    requests_finished_total: int
    requests_failed_total: int
    preemptions_total: int
    adapter_loads_total: int
    adapter_evictions_total: int
    engine_restarts_total: int
    uptime_s: float
    residents: _containers.RepeatedCompositeFieldContainer[ResidentAdapter]
    pages: _containers.RepeatedCompositeFieldContainer[PageRun]
    adapters_registered: int
    host_bytes: int
    requests_cancelled_total: int
    requests_aborted_total: int
    cost_model: CostModel
    memory: Memory
    cold_starts: ColdStarts
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., pages_total: _Optional[int] = ..., pages_free: _Optional[int] = ..., pages_kv: _Optional[int] = ..., pages_adapter: _Optional[int] = ..., steps_total: _Optional[int] = ..., tokens_prefill_total: _Optional[int] = ..., tokens_decode_total: _Optional[int] = ..., requests_finished_total: _Optional[int] = ..., requests_failed_total: _Optional[int] = ..., preemptions_total: _Optional[int] = ..., adapter_loads_total: _Optional[int] = ..., adapter_evictions_total: _Optional[int] = ..., engine_restarts_total: _Optional[int] = ..., uptime_s: _Optional[float] = ..., residents: _Optional[_Iterable[_Union[ResidentAdapter, _Mapping]]] = ..., pages: _Optional[_Iterable[_Union[PageRun, _Mapping]]] = ..., adapters_registered: _Optional[int] = ..., host_bytes: _Optional[int] = ..., requests_cancelled_total: _Optional[int] = ..., requests_aborted_total: _Optional[int] = ..., cost_model: _Optional[_Union[CostModel, _Mapping]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ..., cold_starts: _Optional[_Union[ColdStarts, _Mapping]] = ...) -> None: ...

class ColdStarts(_message.Message):
    __slots__ = ("wait_total", "stream_total", "assist_total", "lost_rows_total", "helpers_up", "helper_restarts_total")
    WAIT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STREAM_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ASSIST_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOST_ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HELPERS_UP_FIELD_NUMBER: _ClassVar[int]
    HELPER_RESTARTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    wait_total: int
    stream_total: int
    assist_total: int
    lost_rows_total: int
    helpers_up: int
    helper_restarts_total: int
    def __init__(self, wait_total: _Optional[int] = ..., stream_total: _Optional[int] = ..., assist_total: _Optional[int] = ..., lost_rows_total: _Optional[int] = ..., helpers_up: _Optional[int] = ..., helper_restarts_total: _Optional[int] = ...) -> None: ...

class EconomyParam(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class TenantPages(_message.Message):
    __slots__ = ("tenant", "pages")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    pages: int
    def __init__(self, tenant: _Optional[str] = ..., pages: _Optional[int] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("eviction", "params", "pages_cached", "prefix_lookup_tokens_total", "prefix_hit_tokens_total", "prefix_evictions_total", "preempted_tokens_kept_total", "host_capacity_bytes", "host_peak_bytes", "host_hits_total", "host_misses_total", "prefetches_total", "loads_cancelled_total", "requests_with_adapter_total", "pool_hits_total", "tenants")
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    PAGES_CACHED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LOOKUP_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_TOKENS_KEPT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HOST_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HOST_MISSES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOADS_CANCELLED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WITH_ADAPTER_TOTAL_FIELD_NUMBER: _ClassVar[int]
    POOL_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    eviction: str
    params: _containers.RepeatedCompositeFieldContainer[EconomyParam]
    pages_cached: int
    prefix_lookup_tokens_total: int
    prefix_hit_tokens_total: int
    prefix_evictions_total: int
    preempted_tokens_kept_total: int
    host_capacity_bytes: int
    host_peak_bytes: int
    host_hits_total: int
    host_misses_total: int
    prefetches_total: int
    loads_cancelled_total: int
    requests_with_adapter_total: int
    pool_hits_total: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantPages]
    def __init__(self, eviction: _Optional[str] = ..., params: _Optional[_Iterable[_Union[EconomyParam, _Mapping]]] = ..., pages_cached: _Optional[int] = ..., prefix_lookup_tokens_total: _Optional[int] = ..., prefix_hit_tokens_total: _Optional[int] = ..., prefix_evictions_total: _Optional[int] = ..., preempted_tokens_kept_total: _Optional[int] = ..., host_capacity_bytes: _Optional[int] = ..., host_peak_bytes: _Optional[int] = ..., host_hits_total: _Optional[int] = ..., host_misses_total: _Optional[int] = ..., prefetches_total: _Optional[int] = ..., loads_cancelled_total: _Optional[int] = ..., requests_with_adapter_total: _Optional[int] = ..., pool_hits_total: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantPages, _Mapping]]] = ...) -> None: ...
