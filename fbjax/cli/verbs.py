"""What each verb of the command does with its flags; imports what it needs when it runs."""

import functools
import json
import shutil
import time
from pathlib import Path


def draw(arguments, overrides) -> None:
    from fbjax.core.console import progress
    from fbjax.data.synthetic.hdf5 import write_hdf5
    from fbjax.data.synthetic.products import is_drawn, write_catalogue

    reused = is_drawn(arguments.out, arguments.products, arguments.seed)
    write = {"parquet": write_catalogue, "h5": write_hdf5}[arguments.format]
    files = write(arguments.out, arguments.products, arguments.seed, progress)
    verb = "reusing" if reused else "drawn"
    print(f"{verb}: {arguments.products:,} products, seed {arguments.seed}: {', '.join(map(str, files.values()))}")


def prepare(arguments, overrides) -> None:
    from fbjax.config.load import load_config

    if not arguments.config and (overrides or not arguments.check):
        raise ValueError("prepare needs --config FILE, or --check TABLE")
    if arguments.beam_options is not None and not arguments.beam:
        raise ValueError(f"--beam_options {arguments.beam_options} goes with --beam")
    config = load_config(arguments.config, overrides) if arguments.config else None
    if arguments.check:
        from fbjax.data.inspection.check import check

        return check(arguments.check, config, print)

    from fbjax.core.console import progress, say
    from fbjax.data.records.builder import build_records, is_prepared, read_report
    from fbjax.data.records.source import Source
    from fbjax.runs.vocabulary import make_vocabulary

    builder = None
    if arguments.beam:
        from fbjax.data.records.beam import BeamBuilder, parse_options

        builder = functools.partial(BeamBuilder, options=parse_options(arguments.beam_options or ""))
    source, vocabulary = Source.from_config(config), make_vocabulary(config, say)
    verb = "reusing" if is_prepared(source, vocabulary, config.data.prepared) else "prepared"
    records = build_records(source, vocabulary, config.data.prepared, progress, builder)
    report = read_report(records["train"])
    for split, count in report["splits"].items():
        print(
            f"{split}: {count:,} products, {report['groups'][split]:,} groups, {report['categories'][split]} categories"
        )
    for reason, count in report["skipped"].items():
        print(f"skipped: {count:,} {reason}")
    print(f"{verb}: {records['train'].home}")


def train(arguments, overrides) -> None:
    begun = time.time()  # what is imported now takes seconds of the run
    from fbjax.config.load import load_config
    from fbjax.parallel.distributed import joined

    config = load_config(arguments.config, overrides)
    with joined(
        arguments.distributed, arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.timeout
    ):
        from fbjax.training.loop import train

        train(config, arguments.workdir, begun)


def candidates(arguments, overrides) -> None:
    from fbjax.config.load import load_config
    from fbjax.core.console import progress, say
    from fbjax.data.records.builder import build_records
    from fbjax.data.records.source import Source
    from fbjax.evaluation.fixed_lists import Rules, describe, make_lists, print_record, record_path, write_lists
    from fbjax.runs.vocabulary import make_vocabulary

    _check_out("--out", arguments.out)
    if arguments.data and arguments.split:
        raise ValueError(f"--data {arguments.data} is a table of its own: leave --split {arguments.split} out")
    rules = Rules(arguments.others, arguments.queries, arguments.seed, arguments.small)
    config = load_config(arguments.config, overrides)
    source = Source.one_table(arguments.data, config) if arguments.data else Source.from_config(config)
    splits = build_records(source, make_vocabulary(config, say), config.data.prepared, progress)
    split = arguments.split or "validation"
    lists = make_lists(splits[split], rules)
    made_of = {"split": split} if not arguments.data else {}
    made_of["tables"] = [file.name for file in source.files()[split if split in source.files() else "train"]]
    columns = {"category": config.data.columns.category, "group": config.data.columns.group}
    record = describe(lists, splits[split], rules) | made_of | {"columns": columns}
    written = write_lists(arguments.out, lists, record)
    print_record(record, print)
    print(
        f"{'written' if written else 'unchanged'}: {arguments.out}, and how it was made: {record_path(arguments.out)}"
    )


def evaluate(arguments, overrides) -> None:
    from fbjax.evaluation.evaluate import evaluate
    from fbjax.evaluation.protocols import print_figures

    if arguments.out:
        _check_out("--out", arguments.out)
    if arguments.release or arguments.direction:
        return _evaluate_release(arguments)
    figures = evaluate(
        arguments.workdir,
        data=arguments.data,
        candidates=arguments.candidates,
        protocols=_names(arguments.protocol),
        num_queries=arguments.queries,
        step=arguments.step,
        towers=arguments.towers,
        rerank=arguments.rerank,
    )
    print_figures(figures, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def _evaluate_release(arguments) -> None:
    from fbjax.core.console import say
    from fbjax.evaluation.released import evaluate_release, print_figures

    if not arguments.release:
        raise ValueError(f"--direction {arguments.direction} is for --release FILE")
    for flag in ("data", "candidates", "queries", "towers", "rerank"):
        if getattr(arguments, flag) is not None:
            raise ValueError(f"--{flag} does not go with --release, which has its own pairs: leave it out")
    figures = evaluate_release(
        arguments.workdir, arguments.release, say, direction=arguments.direction, step=arguments.step
    )
    print_figures(figures, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def baseline(arguments, overrides) -> None:
    from fbjax.config.load import load_config
    from fbjax.evaluation.baselines.run import baseline
    from fbjax.evaluation.protocols import print_figures

    if arguments.out:
        _check_out("--out", arguments.out)
    figures = baseline(
        arguments.family,
        load_config(arguments.config, overrides),
        candidates=arguments.candidates,
        protocols=_names(arguments.protocol),
        num_queries=arguments.queries,
        seed=arguments.seed,
        dims=arguments.dims,
        ridge=arguments.ridge,
        num_directions=arguments.svd,
        hardest=arguments.hardest,
    )
    print_figures(figures, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def compare(arguments, overrides) -> None:
    from fbjax.evaluation.compare import compare, print_figures

    if arguments.out:
        _check_out("--out", arguments.out)
    figures = compare(arguments.first, arguments.second)
    print_figures(figures, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def legacy(arguments, overrides) -> None:
    from fbjax.evaluation.legacy import WARNING, legacy_figures, print_figures, read_scores

    if arguments.out:
        _check_out("--out", arguments.out)
    figures = legacy_figures(*read_scores(arguments.scores), arguments.batch, arguments.shuffle)
    print(WARNING)
    print_figures(figures, Path(arguments.scores).name, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def probe(arguments, overrides) -> None:
    from fbjax.evaluation.baselines.probe import print_figures, probe

    if arguments.out:
        _check_out("--out", arguments.out)
    labels = _names(arguments.labels) if arguments.labels else ()
    figures = probe(arguments.workdir, labels=labels, num_products=arguments.products, step=arguments.step)
    print_figures(figures, print)
    if arguments.out:
        _write_json(arguments.out, figures)


def rank(arguments, overrides) -> None:
    from fbjax.inference.rank import format_table, rank

    if arguments.html:
        _check_out("--html", arguments.html)
    ranking = rank(
        arguments.workdir,
        text=arguments.text,
        image=arguments.image,
        data=arguments.data,
        category=arguments.category,
        top=arguments.top,
        step=arguments.step,
    )
    for line in format_table(ranking, shutil.get_terminal_size().columns):
        print(line)
    if arguments.html:
        from fbjax.report.ranking import write_ranking

        print(f"pictures: {write_ranking(ranking, arguments.html)}")


def embed(arguments, overrides) -> None:
    from fbjax.inference.embed_catalogue import embed

    _check_out("--out", arguments.out)
    embed(
        arguments.workdir,
        arguments.out,
        data=arguments.data,
        what=arguments.what,
        split=arguments.split,
        step=arguments.step,
    )
    print(f"vectors: {arguments.out}")


def export(arguments, overrides) -> None:
    from fbjax.core.console import say
    from fbjax.export.package import export

    content = export(
        arguments.workdir, arguments.format, arguments.out, step=arguments.step, data=arguments.data, say=say
    )
    print(f"exported: step {content['step']} as {arguments.format}, {', '.join(content['functions'])}: {arguments.out}")


def import_(arguments, overrides) -> None:
    from fbjax.core.console import say
    from fbjax.export.importing import import_checkpoint

    import_checkpoint(arguments.source, arguments.workdir, say)
    print(f"imported: {arguments.workdir}; next: fbjax evaluate --workdir {arguments.workdir}")


def report(arguments, overrides) -> None:
    from fbjax.report.report import write_report

    if arguments.out:
        _check_out("--out", arguments.out)
    print(f"report: {write_report(arguments.workdir, arguments.out, arguments.queries)}")


def bench(arguments, overrides) -> None:
    from fbjax.config.load import load_config
    from fbjax.core.console import say
    from fbjax.tools.bench.bench import bench, format_table

    config = load_config(arguments.config, overrides)
    figures = bench(config, arguments.repeats, say, arguments.compare, arguments.trace)
    for line in [json.dumps(figures, indent=2)] if arguments.json else format_table(figures):
        print(line)


def plan(arguments, overrides) -> None:
    from fbjax.config.load import load_config
    from fbjax.core.console import say
    from fbjax.tools.plan.plan import plan
    from fbjax.tools.plan.report import check_plot, format_table, plot

    if arguments.plot:
        _check_out("--plot", arguments.plot)
        check_plot(arguments.plot)
    if arguments.per_chip is not None and arguments.per_chip < 1:
        raise ValueError(f"--per-chip {arguments.per_chip}: give a number of products, at least 1")
    config = load_config(arguments.config, overrides)
    figures = plan(config, list(_names(arguments.topology)), arguments.per_chip, say)
    for line in [json.dumps(figures, indent=2)] if arguments.json else format_table(figures):
        print(line)
    if arguments.plot and figures["scaling"]:
        plot(figures, arguments.plot)
        say(f"plot: {arguments.plot}")
    elif arguments.plot:
        say(f"nothing to draw in {arguments.plot}: no step that fits a chip of known speed")


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(","))


def _write_json(path: str, figures: dict) -> None:
    Path(path).write_text(json.dumps(figures, indent=2) + "\n")


def _check_out(flag: str, path: str) -> None:
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{flag} {path}: give a file in a folder that is there")
