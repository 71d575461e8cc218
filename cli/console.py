"""Talk to the person at the terminal, on standard error: progress, tables, messages. Results never go here."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True, highlight=False)

_LOG_EVERY_S = 5.0


def say(message: str) -> None:
    """One line of talk, as it is."""
    console.print(_plain(message), soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, to: Console = console) -> None:
    """A table with its first column left-aligned and the others right-aligned."""
    table = Table(title=_plain(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_plain(str(cell)) for cell in row))
    to.print(table)


def _plain(text: str) -> str:
    """`text` from anywhere, without markup and without what would move the cursor or recolour the terminal."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


@contextmanager
def counting(what: str, total: int | None, *, before: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress over rows with rate and remaining time; yields a function that is told how many are done.

    A bar on a terminal, else a line every few seconds. `before` rows were done when it all began.
    """
    if console.is_terminal:
        with _bar(TextColumn("{task.fields[rate]}")) as bar:
            task = bar.add_task(what, total=total, completed=before, rate="")
            started = time.monotonic()

            def show(done: int) -> None:
                bar.update(task, completed=done, rate=f"{_rate(done - before, started):.2f} rows/s")

            yield show
    else:
        yield _log_lines(what, total, before)


@contextmanager
def stepping(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show progress over steps; yields a function that is told the step and what to say of it."""
    if console.is_terminal:
        with _bar(TextColumn("{task.fields[told]}", markup=False)) as bar:
            task = bar.add_task(what, total=total, told="")
            yield lambda step, told: bar.update(task, completed=step, told=told)
    else:
        yield lambda step, told: say(f"{what}: step {step} of {total}: {told}")


@contextmanager
def fetching(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the stages of fetching model `name`; yields a `Progress` callback of `agent.models`."""
    if console.is_terminal:
        with _bar() as bar:
            tasks: dict[str, TaskID] = {}

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(f"{stage} {name}")
                # A whole of one part has no share done to show: the bar pulses until it is over.
                bar.update(tasks[stage], completed=done, total=None if total == 1 and not done else total)

            yield show
    else:
        seen: set[str] = set()

        def log(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                say(f"{stage} {name} ...")

        yield log


def _bar(*extra: TextColumn) -> Progress:
    described = TextColumn("{task.description}", markup=False)
    count = (MofNCompleteColumn(),) if extra else ()
    return Progress(described, BarColumn(), *count, *extra, TimeRemainingColumn(), console=console)


def _log_lines(what: str, total: int | None, before: int) -> Callable[[int], None]:
    started = last = time.monotonic()
    shown = before

    def show(done: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if done == shown or (now - last < _LOG_EVERY_S and done != total):
            return
        last, shown = now, done
        rate = _rate(done - before, started)
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        say(f"{what}: {done}{f' of {total}' if total else ''} rows, {rate:.2f} rows/s{left}")

    return show


def _rate(done: int, started: float) -> float:
    return done / max(time.monotonic() - started, 1e-9)


def result_console() -> Console:
    """For tables that are the result of a command: standard output."""
    return Console(file=sys.stdout, highlight=False)


def interrupt_when_terminated() -> None:
    """Let SIGTERM end a long command as Ctrl-C does, so that it can say how to go on.

    As the very signal: asyncio cancels what is awaited on it, and would wait for it to end after an exception.
    """
    if not callable(signal.getsignal(signal.SIGINT)):  # a shell's background command has it ignored,
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # and a job of Ray has it blocked
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
