"""The statements of letters to runs: one api function a verb, each in two forms."""

# ruff: noqa: S608  # the texts are put together from constants; values are always parameters

from __future__ import annotations

from typing import Final

from kedge_client._statements import Statement

_TO: Final = {"letter": "uuid", "run": "uuid", "resource": "text"}
_SAID: Final = {"accepted": "bool", "status": "text"}


def _letter(
    verb: str, function: str, parameters: dict[str, str], columns: dict[str, str]
) -> tuple[Statement, Statement]:
    """Make the statement for a connection of one's own, and the one that rings when a caller's commits."""
    call = f"kedge.{function}({', '.join(f'{{{name}}}' for name in parameters)})"
    said = ", ".join(f"r.{name}" for name in columns)
    # Everybody can sort a letter, so it rings for any queue and workflow.
    bell = "case when r.accepted then kedge.ring_on_commit_v1(null, null) end"
    return (
        Statement(verb, f"select {said} from {call} r", parameters, tuple(columns.values())),
        Statement(f"{verb}_and_ring", f"select {said}, {bell} from {call} r", parameters, (*columns.values(), "void")),
    )


SEND, SEND_AND_RING = _letter(
    "send",
    "send_v1",
    {"letter": "uuid", "run": "uuid", "topic": "text", "event": "text", "resource": "text", "payload": "bytea"},
    {**_SAID, "has_ended": "bool", "delivered": "bool", "unread": "int4"},
)
CANCEL, CANCEL_AND_RING = _letter("cancel", "cancel_run_v1", {**_TO, "reason": "text", "cascade": "bool"}, _SAID)
PAUSE, PAUSE_AND_RING = _letter("pause", "pause_run_v1", {**_TO, "reason": "text"}, _SAID)
RESUME, RESUME_AND_RING = _letter("resume", "resume_run_v1", _TO, _SAID)
RETRY, RETRY_AND_RING = _letter("retry", "retry_run_v1", _TO, _SAID)
FAST_FORWARD, FAST_FORWARD_AND_RING = _letter(
    "fast_forward", "fast_forward_v1", {**_TO, "wait": "text", "payload": "bytea"}, {**_SAID, "has_ended": "bool"}
)
