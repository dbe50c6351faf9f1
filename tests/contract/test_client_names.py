"""The names that an API service may write: kedge's own, and these."""

import kedge
import kedge_client

OWN = [
    "AsyncClient",
    "AsyncRunHandle",
    "AttemptView",
    "Client",
    "Delivery",
    "LetterView",
    "Page",
    "Progress",
    "RunEvent",
    "RunHandle",
    "RunOption",
    "RunView",
    "StartStatement",
    "StepView",
    "WaitView",
]


def test_the_clients_names_are_these_and_the_shared_ones() -> None:
    assert kedge_client.__all__ == sorted([*kedge.__all__, *OWN])


def test_a_shared_name_is_the_same_thing_in_both() -> None:
    for name in kedge.__all__:
        assert getattr(kedge_client, name) is getattr(kedge, name)


def test_every_name_of_the_client_is_documented() -> None:
    for name in OWN:
        assert getattr(kedge_client, name).__doc__
