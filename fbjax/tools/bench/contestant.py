"""A contestant of the benchmark in a process of its own: what it allocates is its own, and it can be stopped or die.

A contestant is an object with methods; the other process makes it and calls them one at a time.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

LONGEST_REASON = 300  # characters
PATIENCE = 5.0  # seconds: PyTorch's compilers stop processes of their own
REFUSALS = (ValueError, OSError, ModuleNotFoundError)  # what the user can mend


class OutOfTime(Exception):
    """The deadline passed while a contestant was at work; its process has been stopped."""


class Failed(Exception):
    """A contestant could not do what it was asked, in one line."""


class Contestant:
    """``ask("method", ..)`` calls a method of the object that ``module:Class`` makes of `arguments`.

    `environment` is set before `module` is imported. `deadline`: as of `time.monotonic`; None for none.
    """

    def __init__(self, factory: str, arguments: tuple, environment: Mapping[str, str], deadline: float | None):
        context = multiprocessing.get_context("spawn")
        self._deadline, (self._connection, theirs) = deadline, context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, dict(environment)), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._call(arguments)
        except BaseException:
            self.stop()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """The method's result. Raises Failed, OutOfTime, or ValueError for what the user can mend."""
        return self._call((method, *arguments))

    def stop(self, patience: float = 0.0) -> None:
        """Ends the process, after `patience` seconds in which it may do so by itself."""
        self._connection.close()
        self._process.join(patience)
        self._process.kill()
        self._process.join()

    def _call(self, message: tuple) -> Any:
        try:
            self._connection.send(message)
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not self._connection.poll(left):
                self.stop()
                raise OutOfTime
            kind, reply = self._connection.recv()
        except (EOFError, OSError):  # also where it was stopped before
            self._process.join()
            code = self._process.exitcode or 0
            by = f"signal {signal.Signals(-code).name}, as one that takes too much memory is" if code < 0 else str(code)
            raise Failed(f"its process ended ({by})") from None
        if kind == "refused":
            raise ValueError(reply)
        if kind == "failed":
            raise Failed(reply)
        return reply


@contextlib.contextmanager
def contestant(
    factory: str, *arguments: Any, environment: Mapping[str, str], deadline: float | None = None
) -> Iterator[Contestant]:
    """A `Contestant` whose process ends with the block."""
    there = Contestant(factory, arguments, environment, deadline)
    try:
        yield there
    finally:
        there.stop(PATIENCE)


def _serve(connection: Connection, factory: str, environment: Mapping[str, str]) -> None:
    """Answers calls, one at a time, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    os.environ.update(environment)
    from fbjax.core.environment import configure_libraries

    configure_libraries()
    there = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            message = connection.recv()
            try:
                if there is None:
                    module, name = factory.split(":")
                    there, reply = getattr(importlib.import_module(module), name)(*message), None
                else:
                    method, *arguments = message
                    reply = getattr(there, method)(*arguments)
                connection.send(("done", reply))
            except REFUSALS as error:
                connection.send(("refused", str(error)))
            except Exception as error:  # one contestant's fault is a line of the report
                if os.environ.get("FBJAX_TRACEBACK"):
                    traceback.print_exc()
                connection.send(("failed", one_line(error)))


def one_line(error: Exception) -> str:
    """The first line of what `error` says, cut to a length that can be read."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} .."
