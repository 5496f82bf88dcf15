"""`ApiError`: a refusal in OpenAI's shape."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer other than 200: `{"error": {"message", "type", "param", "code"}}`.

    `message` is for a person: what is wrong, where, and what to do. It never holds a path of this machine or a traceback.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
