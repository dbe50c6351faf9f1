"""Which workflows a worker executes: name to handler, each name once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeGuard

from msgspec import UNSET

from kedge.definitions import DefinitionTerms
from kedge.errors import DefinitionError
from kedge.retry import Retry
from kedge.run_meta import RetryTerms
from kedge_worker._retention import Retention
from kedge_worker._store import Definition
from kedge_worker._workflows import Workflow

__all__ = ["Registry", "Workflow"]


class Registry:
    """
    Workflows by the name that stands in the database: `name` or `name@version`.

    Args:
        workflows: What `@workflow(ref)` made of the handlers.
        step_retry: The policy of steps that have none of their own.
        retention: How long ended runs are kept of workflows that say nothing; None: for ever.

    Raises:
        DefinitionError: Something is no workflow, or two have one name.
    """

    def __init__(
        self,
        workflows: Iterable[Workflow[Any, Any]],
        *,
        step_retry: Retry = Retry.NEVER,
        retention: Retention | None = None,
    ) -> None:
        self.step_retry: Final = step_retry
        self._retention = retention or Retention.FOREVER
        self._by_name: dict[str, Workflow[Any, Any]] = {}
        for given in workflows:
            self._add(_checked(given))

    @property
    def names(self) -> tuple[str, ...]:
        """What a worker may claim."""
        return tuple(self._by_name)

    @property
    def timeouts_s(self) -> dict[str, float]:
        """Of workflows whose definition has one, in seconds."""
        return {name: made.timeout.total_seconds() for name, made in self._by_name.items() if made.timeout is not None}

    @property
    def forgets(self) -> bool:
        """Whether ended runs of some workflow are deleted some day."""
        return any(made.keep_s != Retention.FOREVER.seconds for made in self.definitions())

    def definitions(self) -> list[Definition]:
        """What the database is told of each workflow."""
        return [
            Definition(name, made.total_steps, _terms(made), (made.retention or self._retention).seconds)
            for name, made in self._by_name.items()
        ]

    def get(self, name: str) -> Workflow[Any, Any] | None:
        return self._by_name.get(name)

    def _add(self, given: Workflow[Any, Any]) -> None:
        name = given.ref.qualified_name
        known = self._by_name.get(name)
        if known is given:
            return
        if known is not None:
            types = _types(known) != _types(given)
            raise DefinitionError(
                f"two handlers for workflow {name!r}"
                + (f", whose refs have different types ({_types(known)} and {_types(given)})" if types else "")
                + ": keep one of them, or give the refs different versions"
            )
        self._by_name[name] = given


def _checked(given: object) -> Workflow[Any, Any]:
    if _is_workflow(given):
        return given
    advice = "put @workflow(ref) over it" if callable(given) else "give what @workflow(ref) made of the handlers"
    raise DefinitionError(f"workflows= holds {given!r:.100}, which is no workflow: {advice}")


def _is_workflow(given: object) -> TypeGuard[Workflow[Any, Any]]:
    return isinstance(given, Workflow)


def _types(one: Workflow[Any, Any]) -> str:
    return f"{one.ref.input_type} -> {one.ref.output_type}"


def _terms(made: Workflow[Any, Any]) -> bytes:
    timeout_s = UNSET if made.timeout is None else made.timeout.total_seconds()
    retry = None if made.retry is Retry.NEVER else RetryTerms.of(made.retry)
    return DefinitionTerms(timeout_s, retry).encode()
