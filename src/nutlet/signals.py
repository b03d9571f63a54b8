"""Ctrl-C and SIGTERM: at once where nothing can be lost, as an exception where work has to be put away.

Imports nothing heavy, so that it is in force before anything else is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "at_once", "blocked_for_children", "deferred", "interruption", "raising", "undeferred"]

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """A signal that asks to end; ``exit_code`` is what a shell expects then: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return f"nutlet: {_WORDS[signal.Signals(self.args[0])]}; run the same command again to go on from here"


def interruption(error: BaseException | None) -> Interrupted | None:
    """Return the interruption that ``error`` is or was raised over: some libraries hide it behind errors of their own.

    >>> print(interruption(ValueError()), interruption(KeyboardInterrupt()))
    None nutlet: interrupted; run the same command again to go on from here
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return error if isinstance(error, Interrupted) else Interrupted()
        error = error.__cause__ or error.__context__
    return None


def at_once() -> contextlib.AbstractContextManager[None]:
    """End the process with one sentence, without exceptions, when a signal comes during the block.

    For while modules load: nothing is written yet, and an interruption inside a module that is half loaded turns into
    errors of its own.
    """
    return _handling(_end)


def raising() -> contextlib.AbstractContextManager[None]:
    """Raise :class:`Interrupted` when a signal comes during the block."""
    return _handling(_raise)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    before = {}
    for number in _WORDS:
        now = signal.getsignal(number)
        # Where whoever started us wants the signal ignored, or a program around us handles it, it stays so.
        if now in (signal.SIG_DFL, signal.default_int_handler, _end, _raise):
            before[number] = now
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, then in before.items():
            signal.signal(number, then)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{Interrupted(number)}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class _Deferral:
    """A signal that came and waits for the end of the block."""

    def __init__(self, handlers: dict[int, Any]) -> None:
        self.handlers = handlers
        self.came: tuple[int, FrameType | None] | None = None
        self.open = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, self.came = self.came is None, (number, frame)
        if self.open or not first:
            self.deliver()

    def deliver(self) -> None:
        came, self.came = self.came, None
        if came is not None:
            handler = self.handlers[came[0]]
            if callable(handler):
                handler(*came)
            elif handler == signal.SIG_DFL:
                signal.signal(came[0], signal.SIG_DFL)
                os.kill(os.getpid(), came[0])


_deferrals: list[_Deferral] = []


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait for the end of the block, so that what is being paid for is kept; a second one does not wait.

    In other threads than the main one signals do not arrive anyway.
    """
    if _deferrals or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _WORDS}
    deferral = _Deferral({number: handler for number, handler in handlers.items() if handler is not None})
    _deferrals.append(deferral)
    for number in deferral.handlers:
        signal.signal(number, deferral)
    try:
        yield
    finally:
        _deferrals.remove(deferral)
        for number, handler in deferral.handlers.items():
            signal.signal(number, handler)
        deferral.deliver()


@contextlib.contextmanager
def undeferred() -> Iterator[None]:
    """Let signals act during the block, though one around it defers them: nothing is lost while it only waits."""
    deferral = _deferrals[-1] if _deferrals and threading.current_thread() is threading.main_thread() else None
    if deferral is None:
        yield
        return
    deferral.deliver()
    deferral.open = True
    try:
        yield
    finally:
        deferral.open = False


@contextlib.contextmanager
def blocked_for_children() -> Iterator[None]:
    """Hold SIGINT back during the block; processes started in it never see one: their parent ends them.

    Ctrl-C goes to every process of a terminal, and each worker would show a trace of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
