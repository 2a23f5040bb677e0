"""Requests and answers of the OpenAI interface, as far as this server knows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(BaseModel):
    """Text of a message."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where a picture is; ``detail`` is accepted and ignored, the model decides."""

    model_config = _STRICT
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A picture: a data URL or, where the server allows it, an http(s) URL."""

    model_config = _STRICT
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(BaseModel):
    """Where a video is."""

    model_config = _STRICT
    url: str


class VideoPart(BaseModel):
    """A video; refused by every model so far."""

    model_config = _STRICT
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(BaseModel):
    """A message; ``developer`` is another word for ``system``, ``name`` is ignored."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``."""

    model_config = _STRICT
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    # Extensions
    ignore_eos: Annotated[
        bool, Field(description="Write on to max_tokens, whatever the model says (load tests).")
    ] = False
    token_budget: Annotated[
        int | None, Field(description="Visual tokens to spend; refused by every model so far.")
    ] = None
    # Accepted and ignored: they change no answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Accepted only where they ask for nothing.
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    """What the prompt was made of."""

    image_tokens: int
    cached_pictures: int


class UsageReport(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    """Milliseconds of a request, an extension."""

    prepare_ms: float
    queue_ms: float
    first_token_ms: float
    engine_ms: float
    total_ms: float


class ChatCompletion(BaseModel):
    """Answer to ``POST /v1/chat/completions`` without ``stream``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: UsageReport
    timings: Timings


class Capabilities(BaseModel):
    """What a model can do, an extension."""

    images: bool
    video: bool
    token_budget: bool
    batching: Literal["shared", "row-by-row", "vllm"]
    batching_reason: str | None
    max_context: int


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    capabilities: Capabilities


class ModelList(BaseModel):
    """Answer to ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Answer to ``GET /health``."""

    status: Literal["ok"] = "ok"


class ErrorInfo(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every refusal."""

    error: ErrorInfo
