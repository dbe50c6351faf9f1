"""The names that applications may write. Taking one away breaks them; adding one is a promise."""

from types import ModuleType

import kedge

SHARED = [
    "ChildCancelledError",
    "ChildFailedError",
    "ClosedClientError",
    "DamagedPayloadError",
    "DatabaseError",
    "DefinitionError",
    "DomainError",
    "Duration",
    "ErrorInfo",
    "EventMessage",
    "EventRef",
    "EventTimeoutError",
    "ForeignTaskError",
    "HandlerUseError",
    "InputConflictError",
    "InvalidDurationError",
    "InvalidEventError",
    "InvalidInputError",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidRunStateError",
    "KedgeError",
    "KeyMissingError",
    "NestedStepError",
    "NonRetryable",
    "NotDecodableError",
    "NotEncodableError",
    "OnConflict",
    "OutcomeUnknownError",
    "PayloadError",
    "PrivilegesError",
    "RawTimeoutError",
    "ReplayMismatchError",
    "ResultTimeoutError",
    "Retry",
    "RetryAfter",
    "RunActiveError",
    "RunCancelledError",
    "RunCrashedError",
    "RunDeadlineError",
    "RunError",
    "RunExistsError",
    "RunFailedError",
    "RunNotActiveError",
    "RunNotFoundError",
    "RunOptions",
    "RunRequest",
    "RunStatus",
    "SchemaError",
    "Singleton",
    "StepError",
    "StepFailedError",
    "StepNotFoundError",
    "StepTimedOutError",
    "TooLargeError",
    "TransactionFailedError",
    "TransactionStateError",
    "UnavailableError",
    "UsageError",
    "WaitTimeoutError",
    "WorkflowRef",
    "WrongThreadError",
    "new_run_id",
    "run_id_time",
]


def public(module: ModuleType) -> set[str]:
    """What a star import brings."""
    space: dict[str, object] = {}
    exec(f"from {module.__name__} import *", space)
    return {name for name in space if name != "__builtins__"}


def test_the_shared_names_are_these() -> None:
    assert kedge.__all__ == SHARED
    assert public(kedge) == set(SHARED)


def test_every_shared_name_is_documented() -> None:
    for name in SHARED:
        value = getattr(kedge, name)
        if isinstance(value, type):
            assert value.__doc__, name
            assert value.__module__.startswith("kedge."), name
