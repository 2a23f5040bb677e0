"""What a request can be refused with, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from vistoken.core.errors import VistokenError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

CLIENT_LEFT = 499
"""Status in the metrics of a request whose client did not wait for the answer."""


class RequestError(VistokenError):
    """A request that is not answered, and why.

    Args:
        message: One sentence: what is wrong and what to do.
        status: HTTP status.
        code: Short name for programs.
        param: The field at fault.
        retry_after: Seconds after which to try again.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code
        self.param, self.retry_after = param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the refusal."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = _KINDS.get(self.status)
        if kind is None:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def too_long(message: str) -> RequestError:
    """More tokens than the language model can read."""
    return RequestError(message, code="context_length_exceeded", param="messages")
