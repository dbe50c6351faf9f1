"""
kedge's client: starts runs, in your own transaction if you like, and reads what became of them.

Also has the public names of `kedge`, so that one import does.
"""

import kedge
from kedge import *  # noqa: F403  # the family's names; __all__ of kedge is pinned by a test
from kedge_client._async import AsyncClient
from kedge_client._handles import AsyncRunHandle, RunHandle
from kedge_client._start_statement import StartStatement
from kedge_client._sync import Client
from kedge_client._views import Page, RunOption, RunView, StepView

__all__ = [
    "AsyncClient",
    "AsyncRunHandle",
    "Client",
    "Page",
    "RunHandle",
    "RunOption",
    "RunView",
    "StartStatement",
    "StepView",
]
__all__ += kedge.__all__
