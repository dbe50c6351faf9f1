"""Handlers and their refs: what fits, and what a worker may claim."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from kedge.errors import DefinitionError
from kedge.refs import WorkflowRef
from kedge_worker._context import Context
from kedge_worker._registry import Registry
from kedge_worker._sync_context import SyncContext
from kedge_worker._workflows import Workflow, workflow

if TYPE_CHECKING:
    from decimal import Decimal as ForTypeCheckers


class Order(msgspec.Struct):
    order_id: str


class Receipt(msgspec.Struct):
    charge_id: str


process = WorkflowRef("process", Order, Receipt)
nightly = WorkflowRef("nightly")


async def handle(_ctx: Context, _order: Order) -> Receipt:
    return Receipt("ch_1")


def bind(ref: Any, handler: Any) -> Workflow[Any, Any]:
    made: Workflow[Any, Any] = cast("Any", workflow)(ref)(handler)
    return made


def test_a_workflow_has_its_ref_and_its_handler_and_cannot_be_called() -> None:
    made = workflow(process)(handle)

    assert made.ref is process
    assert made.fn is handle
    assert made.is_async
    assert not callable(made)
    assert "process" in repr(made)


def test_sync_handlers_and_such_without_an_input_fit_too() -> None:
    @workflow(process)
    def sync(_ctx: SyncContext, _order: Order) -> Receipt:
        return Receipt("ch_1")

    @workflow(nightly)
    async def without(_ctx: Context) -> None: ...

    assert not sync.is_async
    assert sync.takes_input
    assert without.is_async
    assert not without.takes_input


def test_annotations_may_be_absent_or_say_less() -> None:
    bare: Any = eval("lambda ctx, order: None")  # without any annotation

    async def vague(_ctx: Any, _order: object) -> Any:
        return Receipt("ch_1")

    async def more(_ctx: Context, _order: Order, retries: int = 3) -> Receipt:
        return Receipt(str(retries))

    handlers: list[Any] = [bare, vague, more]
    for handler in handlers:
        assert bind(process, handler).fn is handler


async def no_input(_ctx: Context) -> Receipt:
    return Receipt("ch_1")


async def too_many(_ctx: Context, _order: Order, _more: int) -> Receipt:
    return Receipt("ch_1")


async def keyword_only(_ctx: Context, _order: Order, *, more: int) -> Receipt:
    return Receipt(str(more))


async def wrong_input(_ctx: Context, _order: int) -> Receipt:
    return Receipt("ch_1")


async def wrong_output(_ctx: Context, _order: Order) -> str:
    return "ch_1"


async def wrong_context(_ctx: SyncContext, _order: Order) -> Receipt:
    return Receipt("ch_1")


def wrong_sync_context(_ctx: Context, _order: Order) -> Receipt:
    return Receipt("ch_1")


async def unknown_names(_ctx: Context, _order: "ForTypeCheckers") -> Receipt:
    return Receipt("ch_1")


async def yields(_ctx: Context, _order: Order) -> AsyncIterator[Receipt]:
    yield Receipt("ch_1")


MISFITS: list[tuple[Any, str]] = [
    (no_input, "the ref wants (ctx, input)"),
    (too_many, "the ref wants (ctx, input)"),
    (keyword_only, "the ref wants (ctx, input)"),
    (wrong_input, "takes int, the ref says Order"),
    (wrong_output, "returns str, the ref says Receipt"),
    (wrong_context, "an async handler gets a Context"),
    (wrong_sync_context, "a sync handler gets a SyncContext"),
    (unknown_names, "TYPE_CHECKING"),
    (yields, "returns its result once"),
    (Order("o-1"), "is no function"),
    (Order, "is no function"),
]


@pytest.mark.parametrize(("handler", "words"), MISFITS)
def test_a_handler_that_does_not_fit_its_ref_is_refused(handler: Any, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        bind(process, handler)

    assert "'process'" in str(refused.value)
    assert words in str(refused.value)


def test_a_decorator_without_its_ref_is_refused() -> None:
    with pytest.raises(DefinitionError, match="@workflow\\(my_ref\\)"):
        cast("Any", workflow)(handle)


def test_a_worker_may_claim_what_is_registered_by_name_and_version() -> None:
    second = WorkflowRef("process", Order, Receipt, version="2")

    registry = Registry([bind(process, handle), bind(second, handle)])

    assert registry.names == ("process", "process@2")
    assert registry.get("process@2") is not None
    assert registry.get("process@3") is None


def test_the_same_workflow_twice_is_once() -> None:
    made = bind(process, handle)

    assert Registry([made, made]).names == ("process",)


def test_two_handlers_for_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="two handlers for workflow 'process'"):
        Registry([bind(process, handle), bind(process, handle)])


def test_two_refs_of_one_name_with_other_types_are_refused_with_both() -> None:
    other = WorkflowRef("process", Order, str)

    async def handle_other(_ctx: Context, _order: Order) -> str:
        return ""

    with pytest.raises(DefinitionError, match="different types"):
        Registry([bind(process, handle), bind(other, handle_other)])


@pytest.mark.parametrize("wrong", [handle, process, "process", None])
def test_what_is_no_workflow_is_refused_with_the_remedy(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="@workflow\\(ref\\)"):
        Registry([wrong])
