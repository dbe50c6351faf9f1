"""The clock of `kedge_worker.testing`, by its old name."""

from kedge_worker.testing import Clock as Clock
