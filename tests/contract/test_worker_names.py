"""The names that a worker service may write: kedge's own, and these."""

import kedge
import kedge_worker

OWN = ["Child", "Context", "NotYet", "Retention", "SyncChild", "SyncContext", "Worker", "Workflow", "step", "workflow"]


def test_the_workers_names_are_these_and_the_shared_ones() -> None:
    assert sorted(kedge_worker.__all__) == sorted([*kedge.__all__, *OWN])


def test_a_shared_name_is_the_same_thing_in_the_worker() -> None:
    for name in kedge.__all__:
        assert getattr(kedge_worker, name) is getattr(kedge, name)


def test_every_name_of_the_worker_is_documented() -> None:
    for name in OWN:
        assert getattr(kedge_worker, name).__doc__
