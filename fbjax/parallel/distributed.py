"""Runs of many processes: how they connect, which one prints, and how all stop at the same step on a signal.

JAX's distributed runtime does the work. Every process runs the same program over the same files, and only the first
writes unsharded ones. In a run of one process no function here waits.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from fbjax.core import console

PREEMPTED = 75  # exit status EX_TEMPFAIL of sysexits.h: run again to resume
LOST = 76  # exit status EX_PROTOCOL: another process is gone
INTERRUPTED = 130  # exit status of a program that Ctrl-C has ended
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # a terminal's Ctrl-C, a scheduler's warning, a closed terminal


class Preempted(SystemExit):
    """Training received a signal to stop and has saved its step: exit now."""


@contextlib.contextmanager
def joined(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> Iterator[None]:
    """Makes this process one of a run; call it before the first computation.

    `distributed`: JAX finds the other processes in the environment of SLURM, a TPU pod or Kubernetes. Without it, give
    `coordinator` (HOST:PORT of process 0), `num_processes` and `process_id`, or none of them for one process. Where a
    process is missing after `timeout` seconds, or is lost later, this one prints an error and exits.
    """
    _check(distributed, coordinator, num_processes, process_id)
    if not (distributed or coordinator):
        yield
        return
    with _limited_to(timeout, coordinator):
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=timeout + 60,  # ours expires first, and names the remedy
                cluster_detection_method=None if distributed else "deactivate",
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed finds no cluster to join ({error}): outside SLURM, TPU pods and Kubernetes give "
                "--coordinator HOST:PORT --num-processes N --process-id I"
            ) from None
    if jax.process_index() > 0:
        console.silence()
    console.say(f"{jax.process_count()} processes, {jax.device_count()} devices")
    try:
        with _aborts_explained():
            yield
    except BaseException as error:
        if not isinstance(error, Preempted):
            _leave(error)
        raise
    finally:
        jax.distributed.shutdown()


def _check(distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    given, together = [flag for flag, value in flags.items() if value is not None], ", ".join(flags)
    if distributed and given:
        raise ValueError(f"--distributed finds {', '.join(given)} itself: leave it out, or give all of {together}")
    if given and len(given) < len(flags):
        raise ValueError(f"{', '.join(given)} alone: many processes need all of {together}")
    if coordinator and (":" not in coordinator or not coordinator.rsplit(":", 1)[1].isdigit()):
        raise ValueError(f"--coordinator {coordinator!r} is not HOST:PORT")
    if coordinator and not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id {process_id} is not one of --num-processes {num_processes}: 0 is the first")
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in os.environ and tasks > 1 and not (distributed or given):
        raise ValueError(
            f"this is one of {tasks} tasks of SLURM, which would all write to one workdir: give --distributed, or "
            "start one task"
        )


@contextlib.contextmanager
def _limited_to(timeout: int, coordinator: str | None):
    """Ends the process where the block takes longer; JAX itself would abort with a trace."""

    def give_up():
        where = f" to {coordinator}" if coordinator else ""
        _exit(
            f"{socket.gethostname()}: not all processes came{where} within {timeout} s: is each of them running, with "
            "the same --num-processes and its own --process-id, and can it reach the first one's host and port?"
        )

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _aborts_explained():
    """Ends the process as `_leave` does where JAX's coordination service aborts it first.

    The service calls abort() from a thread of its own, which Python's signal handlers never see, and jaxlib 0.10.2
    cannot call its `missed_heartbeat_callback` (std::bad_cast).
    """
    index, handler_type = jax.process_index(), ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = handler_type(lambda _: _lost(index, "JAX has aborted, see above"))
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)


def _leave(error: BaseException) -> None:
    """Ends the process without waiting for the others, which may wait for it; they notice its exit."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    index = jax.process_index()
    if any(sign in text for sign in ("Gloo", "gloo", "NCCL", "Connection", "coordination", "UNAVAILABLE")):
        _lost(index, text[:160])
    if isinstance(error, KeyboardInterrupt):
        _exit("interrupted", 130)
    _exit(f"process {index}: {text}")


def _lost(index: int, reason: str) -> None:
    _exit(
        f"process {index}: another process of this run is gone ({reason}); run all of them again, and they go on from "
        "the last checkpoint",
        LOST,
    )


def _exit(message: str, status: int = 1) -> None:
    print(f"fbjax: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def is_first() -> bool:
    return jax.process_index() == 0


def barrier(place: str) -> None:
    """Waits until all processes reach `place`. For short waits: long work waits at a file's lock."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def all_processes(value: bool) -> bool:
    """Whether `value` is true in every process."""
    return bool(multihost_utils.process_allgather(np.array(value)).all()) if jax.process_count() > 1 else value


def broadcast_from_first(value: bool) -> bool:
    """The first process's `value` in all of them, for values that depend on a clock or a disk."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


@contextlib.contextmanager
def preemption():
    """A function of the step: the exit status to stop with, in all processes at the same step, or 0 to go on.

    A single process stops by `SIGNALS`, unless its parent had it ignore one (nohup); a second Ctrl-C ends it at once.
    Many processes stop by SIGTERM to one of them. Call the function at every step. Outside the block signals end a
    process at once.
    """
    if jax.process_count() > 1:
        yield lambda step: PREEMPTED if multihost_utils.reached_preemption_sync_point(step) else 0
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield lambda step: 0
        return
    received: list[int] = []

    def note(number: int, _) -> None:
        if number == signal.SIGINT and number in received:
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)  # as a kill: what is being written appears whole or not at all
        if number == signal.SIGINT:
            os.write(2, b"stopping after this step, which is saved; Ctrl-C again stops at once\n")
        received.append(number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, note)
    try:
        yield lambda step: (INTERRUPTED if signal.SIGINT in received else PREEMPTED) if received else 0
    finally:
        for number in taken:
            signal.signal(number, before[number])
