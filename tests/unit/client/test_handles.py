"""Handles and views as values: what they equal, what they show, and that they are not copied."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from uuid import UUID

import pytest

from kedge import WorkflowRef
from kedge_client import AsyncClient, AsyncRunHandle, Client, Page, RunHandle

REF = WorkflowRef("process-order", str, int, version="2")
ID = UUID("0198c0de-0000-7000-8000-000000000000")
OTHER = UUID("0198c0de-0000-7000-8000-000000000001")


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Any:
    return request.param.connect("host=127.0.0.1 port=1")


def test_handles_of_one_run_are_equal_whoever_made_them() -> None:
    sync, other = Client.connect("host=127.0.0.1 port=1"), AsyncClient.connect("host=127.0.0.1 port=1")

    handles: list[Any] = [sync.handle(REF, ID), sync.handle(WorkflowRef.untyped("x"), str(ID)), other.handle(REF, ID)]

    assert len(set(handles)) == 1
    assert handles[0] != sync.handle(REF, OTHER)
    assert handles[0] != ID


def test_a_handle_shows_the_workflow_and_the_id(client: Any) -> None:
    handle = client.handle(REF, ID)

    assert type(handle) in {RunHandle, AsyncRunHandle}
    assert repr(handle) == f"<{type(handle).__name__} process-order@2 {ID}>"


def test_a_handle_that_comes_from_no_start_does_not_know_who_made_the_run(client: Any) -> None:
    handle = client.handle(REF, ID)

    assert (handle.created, handle.id, handle.ref) == (None, ID, REF)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_a_handle_cannot_be_copied_and_says_what_to_keep_instead(client: Any, copied: Any) -> None:
    with pytest.raises(TypeError, match=r"keep run\.id, and use client\.handle\(ref, id\)"):
        copied(client.handle(REF, ID))


def test_a_handle_takes_no_attributes(client: Any) -> None:
    handle = client.handle(REF, ID)

    with pytest.raises(AttributeError):
        handle.id = OTHER
    with pytest.raises(AttributeError):
        handle.note = "x"


def test_pages_compare_by_value() -> None:
    assert Page([1], "n") == Page([1], "n") != Page([1])
