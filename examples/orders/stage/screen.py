"""What the demo shows: a moving bar on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.orders.stage.customers import Sales


class Screen(Protocol):
    """Where the demo speaks."""

    def say(self, text: str) -> None:
        """Tell what happens next, or has just happened."""

    def show(self, sales: Sales) -> None:
        """Tell how far the customers are; may be called often."""

    def print_table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print the figures."""


class PlainScreen:
    """Lines, for a log: how far the customers are is told ten times in all."""

    def __init__(self) -> None:
        self._tenths_told = 0

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def show(self, sales: Sales) -> None:
        """Print a line for each tenth of the orders."""
        tenths = len(sales.ended) * 10 // sales.total
        if tenths > self._tenths_told:
            self._tenths_told = tenths
            self.say(f"  posted {sales.begun:,} of {sales.total:,}, answered {len(sales.ended):,}")

    def print_table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print name and figure, a line each."""
        names = max(len(name) for name, _ in rows)
        figures = max(len(figure) for _, figure in rows)
        for name, figure in rows:
            self.say(f"  {name:<{names}}  {figure:>{figures}}")


class TerminalScreen:
    """Two bars that stay at the bottom while lines are printed above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._posted: TaskID | None = None
        self._answered: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, sales: Sales) -> None:
        """Move the bars."""
        if self._posted is None or self._answered is None:
            self._posted = self._progress.add_task("posted", total=sales.total)
            self._answered = self._progress.add_task("answered", total=sales.total)
        self._progress.update(self._posted, completed=sales.begun)
        self._progress.update(self._answered, completed=len(sales.ended))

    def print_table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print a table."""
        table = Table(show_header=False)
        table.add_column()
        table.add_column(justify="right", style="bold")
        for row in rows:
            table.add_row(*row)
        self._progress.stop()
        self._progress.console.print(table)


@contextmanager
def open_screen() -> Generator[Screen]:
    """Take the terminal, if there is one."""
    if sys.stdout.isatty():
        columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            yield TerminalScreen(progress)
    else:
        yield PlainScreen()
