"""Verbs that train a run and report on it."""

import time

from fbjax.cli.common import CONFIG, WORKDIR, flag, out_file, verb, whole_number
from fbjax.core.console import answer


@verb(
    "train a model; with an existing workdir, resume exactly",
    CONFIG,
    flag("--workdir", "folder for checkpoints and logs", required=True),
    flag("--distributed", "join the other processes of SLURM, a TPU pod or Kubernetes", action="store_true"),
    flag("--coordinator", "elsewhere: address of process 0 (default: none, one process)", metavar="HOST:PORT"),
    whole_number("--num-processes", "with --coordinator: number of processes (default: none)", metavar="N"),
    whole_number(
        "--process-id", "with --coordinator: number of this process, from 0 (default: none)", at_least=0, metavar="I"
    ),
    whole_number("--timeout", "maximum wait for the other processes", default=300, metavar="SECONDS"),
    examples=("fbjax train --config configs/my_catalogue.py --workdir runs/mine --config.data.train=products.csv",),
)
def train(config, workdir, **processes) -> None:
    begun = time.time()  # the imports below take seconds of the run
    from fbjax.parallel.distributed import joined

    with joined(**processes):
        from fbjax.training.loop import train

        train(config, workdir, begun)


@verb(
    "write an HTML report of a run: curves, metrics, and rankings with pictures",
    WORKDIR,
    out_file("--out", "HTML file (default: report.html in the workdir)"),
    whole_number("--queries", "queries in each direction, if the checkpoint is not evaluated yet", default=200),
    examples=("fbjax report --workdir runs/mine",),
)
def report(workdir, out, queries) -> None:
    from fbjax.report.report import write_report

    answer(f"report: {write_report(workdir, out, queries)}")
