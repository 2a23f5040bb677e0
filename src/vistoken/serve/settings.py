"""What a server allows, in one place that the command line, tests and documentation share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class ServeSettings(BaseModel):
    """Limits and permissions of the HTTP side; the engine has its own limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_keys: tuple[SecretStr, ...] = Field(
        default=(), description="Keys of which a request brings one."
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="Longest request body.")
    max_images: int = Field(default=8, ge=0, description="Pictures in one request.")
    max_pixels: int = Field(
        default=50_000_000, ge=1, description="Pixels of all pictures of one request together."
    )
    max_messages: int = Field(default=256, ge=1, description="Messages in one request.")
    max_choices: int = Field(default=8, ge=1, description="Largest n.")
    max_open_requests: int = Field(
        default=128,
        ge=1,
        description="Requests that are being read, prepared, waited for or answered.",
    )
    default_temperature: float = Field(
        default=0.0, ge=0, le=2, description="Temperature where a request names none."
    )
    image_urls: bool = Field(
        default=False, description="Fetch pictures from public http(s) addresses."
    )
    image_url_bytes: int = Field(default=16 * 2**20, ge=1, description="Longest picture fetched.")
    image_url_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds to fetch a picture."
    )
    image_url_redirects: int = Field(default=3, ge=0, description="Redirects followed.")
    header_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds to send request headers."
    )
    body_timeout_s: float = Field(default=30.0, gt=0, description="Seconds to send a request body.")
    answer_timeout_s: float = Field(default=600.0, gt=0, description="Seconds to answer a request.")
    keep_alive_s: float = Field(
        default=15.0, gt=0, description="Seconds of silence after which a stream sends a comment."
    )
    shutdown_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds that running answers have to finish after SIGTERM."
    )
