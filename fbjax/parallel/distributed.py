"""Many processes as one run: how they meet, which of them speaks, and how all stop at one step when one is told to.

JAX's distributed runtime does the work. Every process runs the same program over the same files; the first alone
writes what is not cut up between them. In a run of one process nothing here waits for anybody.
"""

import contextlib
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

PREEMPTED = 75  # exit status: EX_TEMPFAIL of sysexits.h, run again to go on
LOST = 76  # exit status: EX_PROTOCOL, another process is gone


class Preempted(SystemExit):
    """Training was told to stop, and has saved the step that it stands at: nothing remains but to exit."""

    def __init__(self):
        super().__init__(PREEMPTED)


@contextlib.contextmanager
def joined(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> Iterator[None]:
    """This process as one of a run's. Has to come before the first computation.

    `distributed`: all else is in the environment of SLURM, a TPU pod or Kubernetes, where JAX looks for it; else the
    `coordinator`, HOST:PORT of process 0, and which process of how many this is; else it is the only one. Where not all
    have come after `timeout` seconds, or one is gone later, this process says so and ends.
    """
    explicit = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    _check(distributed, explicit)
    if not (distributed or coordinator):
        yield
        return
    with _given_up_after(timeout, coordinator):
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=timeout + 60,  # ours comes first, and says what to do
                cluster_detection_method=None if distributed else "deactivate",
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed finds no cluster to be part of ({error}): outside SLURM, TPU pods and Kubernetes give "
                "--coordinator HOST:PORT --num_processes N --process_id I"
            ) from None
    if jax.process_index() > 0:
        console.silence()
    console.say(f"{jax.process_count()} processes, {jax.device_count()} devices")
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Preempted):
            _leave(error)
        raise
    finally:
        jax.distributed.shutdown()


def _check(distributed: bool, explicit: dict) -> None:
    given = [flag for flag, value in explicit.items() if value is not None]
    if distributed and given:
        raise ValueError(
            f"--distributed finds {', '.join(given)} itself: leave it out, or give all of {_all(explicit)}"
        )
    if given and len(given) < len(explicit):
        raise ValueError(f"{', '.join(given)} alone: many processes need all of {_all(explicit)}")
    coordinator, num_processes, process_id = explicit.values()
    if coordinator and (":" not in coordinator or not coordinator.rsplit(":", 1)[1].isdigit()):
        raise ValueError(f"--coordinator {coordinator!r} is not HOST:PORT")
    if coordinator and not 0 <= process_id < num_processes:
        raise ValueError(f"--process_id {process_id} is not one of --num_processes {num_processes}: 0 is the first")
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in os.environ and tasks > 1 and not (distributed or given):
        raise ValueError(
            f"this is one of {tasks} tasks of SLURM, which would all write to one workdir: give --distributed, or "
            "start one task"
        )


def _all(explicit: dict) -> str:
    return ", ".join(explicit)


@contextlib.contextmanager
def _given_up_after(timeout: int, coordinator: str | None):
    """Ends the process where the block takes longer: JAX would abort it with a trace of its own."""

    def give_up():
        where = f" to {coordinator}" if coordinator else ""
        _die(
            f"{socket.gethostname()}: not all processes came{where} within {timeout} s: is each of them running, with "
            "the same --num_processes and its own --process_id, and can it reach the first one's host and port?"
        )

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave(error: BaseException) -> None:
    """Ends the process without waiting for the others, who may wait for it for ever: they notice that it is gone."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    index = jax.process_index()
    if any(sign in text for sign in ("Gloo", "gloo", "NCCL", "Connection", "coordination", "UNAVAILABLE")):
        _die(
            f"process {index}: another process of this run is gone ({text[:160]}); run all of them again, and they go "
            "on from the last checkpoint",
            LOST,
        )
    interrupted = isinstance(error, KeyboardInterrupt)
    _die("interrupted" if interrupted else f"process {index}: {text}", 130 if interrupted else 1)


def _die(message: str, status: int = 1) -> None:
    print(f"fbjax: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def is_first() -> bool:
    return jax.process_index() == 0


def barrier(place: str) -> None:
    """Waits until all processes have come to `as_path`. Not for long: what takes minutes waits at a file's lock."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def all_processes(value: bool) -> bool:
    """Whether it is so in every process."""
    return bool(multihost_utils.process_allgather(np.array(value)).all()) if jax.process_count() > 1 else value


def broadcast_from_first(value: bool) -> bool:
    """What the first process says, in all of them: for what depends on a clock or a disk."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


@contextlib.contextmanager
def preemption():
    """A function of the step that tells, in all processes at the same step, that one was sent SIGTERM.

    Asked at every step. Outside the block a single process ends at once, as ever.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # who embeds the loop in a thread has the signals
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
