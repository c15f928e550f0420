"""Measures what `fbjax bench` reports, stage by stage; each stage is printed when it is done.

fbjax and PyTorch run in processes of their own. Batches and weights are random; no table and no file is read.
Every figure is a median over rounds with its range. In a round each candidate of the stage makes one run: so many
launches that they last half a second, and one wait for all of them. Ratios are taken within a round.

* "step": the train step of the config. The batch holds texts of T - text_bucket < length <= T = text_tokens pieces,
  padded to T, the longest of training's length-sorted batches.
* "adaptive": step time relative to `fixed` weights. "every_16" is (one step that solves + 15 that hold) / 16.
* "lengths": the speed at the other padded lengths.
* "score": each of 16 texts with each of 32 images, which are embedded beforehand; null where no task scores pairs.
* "patches": the patch network alone, from pixels on the device.
* "latency": one query text against 1 and 32 products, one request after another, by an encoder of 12, 6 and 2 layers.
  p50, p95 and p99 are of single requests over all rounds. Queries have the lengths of a real catalogue's titles, padded
  to T or to the next bucket. What the products alone need, such as patch features, is cached, or starts from pixels.
* "torch", with `compare`: PyTorch's time over ours. See `fbjax.tools.bench.theirs`.

"peak_share" is FLOP/s (`fbjax.monitoring.flops`) over those of a large matrix product in the same round and dtype,
"chip_share" over those of the chip's data sheet. "host_share" is the host's time to launch a step over the step's.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fbjax.config.load import config_to_json
from fbjax.config.schema import Config
from fbjax.tools.bench import table
from fbjax.tools.bench.contestant import Contestant, Failed, OutOfTime, contestant
from fbjax.tools.bench.timing import Run, Times, launches

STAGES = ("step", "adaptive", "lengths", "score", "patches", "latency")
TORCH = "torch"
IMPLEMENTATIONS = ("eager", "compile", "as_written")  # of PyTorch
OURS, THEIRS = "fbjax.tools.bench.ours:Ours", "fbjax.tools.bench.theirs:Theirs"
PLANNED = ("fixed", "gradient")  # whose memory is planned where nothing runs
SLOW = 2.0  # seconds of a first launch that needs no second one to be believed
PAUSE = 0.05  # seconds: idle threads spin for a while, those of one library would slow the next one
TRACED_STEPS = 3
# fbjax and PyTorch share a GPU's memory evenly; the rest is for the CUDA libraries
SHARED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}

Entrant = tuple[Contestant, str]  # and the name of its candidate


def bench(
    config: Config,
    repeats: int,
    say: Callable[[str], None],
    compare: str = "",
    only: Iterable[str] = (),
    budget: float = 0.0,
    trace: str = "",
    publish: Callable[[dict], None] = lambda figures: None,
) -> dict:
    """The figures as nested dicts; without repeats only "memory", the bytes that XLA plans for this device.

    "memory", of one device, has "state" (parameters, optimiser, frozen weights) and "step" (the rest at its peak:
    batch, activations, gradients). `compare`: "torch" or nothing. `only`: stages to run (default: all). `budget`:
    seconds after which work is stopped where it stands (default: none). `trace`: a folder for a profile of three
    steps. `say` gets a line whenever one is known, `publish` the figures so far after each stage. Raises ValueError.
    """
    stages = _chosen(tuple(only), compare) if repeats else ()
    deadline = time.monotonic() + budget if budget else None
    with contextlib.ExitStack() as stack:
        run = _Bench(stack, config, repeats, say, deadline, SHARED if TORCH in stages else {})
        try:
            run.open()
            if trace:
                run.trace(trace)
            for stage in stages:
                getattr(run, stage)()
                publish(run.figures)
                if "stopped" in run.figures:
                    break
            if not repeats:
                run.plan()
        except OutOfTime:
            run.figures["stopped"] = f"the budget of {budget:.0f} s ended"
        if "stopped" in run.figures:
            say(f"stopped: {run.figures['stopped']}")
        publish(run.figures)
    return run.figures


def _chosen(only: tuple[str, ...], compare: str) -> tuple[str, ...]:
    """The stages to run. Raises ValueError for unknown names."""
    if compare not in ("", TORCH):
        raise ValueError(f"--compare {compare!r} is unknown (use torch)")
    known = (*STAGES, TORCH) if compare else STAGES
    if unknown := [name for name in only if name not in known]:
        needs = ", which needs --compare torch" if unknown[0] == TORCH else ""
        raise ValueError(f"--only {unknown[0]}{needs or ' is unknown'} (stages: {', '.join(known)})")
    return tuple(name for name in known if name in only) if only else known


class _Bench:
    """The stages; each fills `figures` and says its lines."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        config: Config,
        repeats: int,
        say: Callable[[str], None],
        deadline: float | None,
        environment: Mapping[str, str],
    ):
        self._stack, self._json = stack, config_to_json(config)
        self._repeats, self._say, self._deadline, self._environment = repeats, say, deadline, environment
        self.figures: dict[str, Any] = {"repeats": repeats}

    def open(self) -> None:
        """Starts fbjax. Raises ValueError where that fails."""
        try:
            self._ours = self._enter(OURS, self._json)
            self._about = self._ours.ask("about")
        except Failed as error:
            raise ValueError(f"the benchmark cannot start: {error}") from error
        self.figures |= {"device": self._about["device"], "memory": {"state": None, "step": {}}}
        self._say(table.heading(self._about, self._repeats))

    def plan(self) -> None:
        for variant in dict.fromkeys((*PLANNED, self._about["own"])):
            self._plan(variant)
            with self._failures("memory", variant, "does not fit here"):
                self._ours.ask("check_memory", variant)

    def trace(self, folder: str) -> None:
        with self._failures("trace", folder):
            self.figures["trace"] = self._ours.ask("trace", folder, TRACED_STEPS)
            self._say(f"profile of {TRACED_STEPS} steps: {folder}")
            self._show(table.trace(self.figures))

    def step(self) -> None:
        own = f"step {self._about['own']}"
        times = self._rounds("step", {own: self._mine(own), "matmul": self._mine("matmul")})
        if own not in times:
            return
        pairs = 2 * self._about["products"]
        figures = times.rate_entry("pairs_per_second", own, pairs) | {"host_share": self._host_share(times, own)}
        self.figures["train"] = figures | self._shares(times, own, "step")
        self._plan(self._about["own"])
        self._show(table.step(self.figures))

    def adaptive(self) -> None:
        entrants = {}
        for variant in self._about["variants"]:
            entrants[variant] = self._mine(f"step {variant}")
        entrants["every_16 holding"] = self._mine("step every_16 holding")
        times = self._rounds("adaptive", entrants)
        times = times.mixed("every_16 mixed", {"every_16": 1 / 16, "every_16 holding": 15 / 16})
        ratios: dict = {}
        for name in ("gradient", "loss_softmax", "every_16", "estimate"):
            ratios |= times.ratio_entry(name, "every_16 mixed" if name == "every_16" else name, "fixed")
        self.figures.setdefault("train", {})["adaptive"] = ratios
        for variant in self._about["variants"]:
            if variant in times:
                self._plan(variant)
        self._show(table.adaptive(self.figures))

    def lengths(self) -> None:
        lengths, pairs = self._about["lengths"], 2 * self._about["products"]
        times = self._rounds("lengths", {f"{n} pieces": self._mine(f"length {n}") for n in lengths})
        rates = {str(n): pairs / times.median(f"{n} pieces") for n in lengths if f"{n} pieces" in times}
        self.figures.setdefault("train", {})["by_length"] = rates
        self._show(table.lengths(self.figures))

    def score(self) -> None:
        self.figures["score"] = None
        if not self._about["scores_pairs"]:
            return
        self._rate("score", "pairs", self._about["scored_pairs"])

    def patches(self) -> None:
        self._rate("patches", "images", self._about["products"])

    def latency(self) -> None:
        requests = self._about["requests"]
        times = self._rounds("latency", {r["name"]: self._mine(f"request {i}") for i, r in enumerate(requests)})
        figures = self.figures["latency"] = []
        for request in requests:
            if (name := request.pop("name")) in times:
                padded, deepest = request.pop("padded_like"), request.pop("deepest_like")
                ratios = times.ratio_entry("vs_padded", name, padded) | times.ratio_entry("vs_deepest", name, deepest)
                figures.append(request | times.percentiles(name) | ratios)
        self._show(table.latency(self.figures))

    def torch(self) -> None:
        """Checks that the libraries agree, then times both in the same rounds."""
        try:
            theirs = self._enter(THEIRS, self._json, self._about["platform"], self._about["num_devices"])
            theirs.ask("check", *self._ours.ask("for_torch"))
        except Failed as error:
            return self._failed("torch", "the check", error)
        self._say("PyTorch gives the same losses and scores")
        own = self.figures["torch"] = {}
        for part, key, pairs in (
            ("step", "train", 2 * self._about["products"]),
            ("score", "score", self._about["scored_pairs"]),
        ):
            entrants = {name: (theirs, f"{part} {name}") for name in IMPLEMENTATIONS}
            ours = {"fbjax": self._mine(f"paper {part}")}
            times = self._rounds(f"torch, {key}", ours | entrants | {"matmul": (theirs, "matmul")})
            if "fbjax" not in times:
                continue
            ratios: dict = {}
            for name in IMPLEMENTATIONS:
                ratios |= times.ratio_entry(f"vs_torch_{name}", name, "fbjax")
            self.figures[key] = (self.figures.get(key) or {}) | ratios
            own[key] = {
                name: times.rate_entry("pairs_per_second", name, pairs)
                | {"host_share": self._host_share(times, name)}
                | self._shares(times, name, f"paper {part}")
                for name in ("fbjax", *IMPLEMENTATIONS)
                if name in times
            }
            self._show(table.torch(self.figures, key))

    def _rate(self, stage: str, unit: str, amount: int) -> None:
        """A stage of one candidate of its name, which does `amount` in a launch."""
        times = self._rounds(stage, {stage: self._mine(stage), "matmul": self._mine("matmul")})
        if stage in times:
            rate = times.rate_entry(f"{unit}_per_second", stage, amount)
            self.figures[stage] = rate | self._shares(times, stage, stage)
            self._show(table.rate(self.figures, stage, unit))

    def _enter(self, factory: str, *arguments: Any) -> Contestant:
        return self._stack.enter_context(
            contestant(factory, *arguments, environment=self._environment, deadline=self._deadline)
        )

    def _mine(self, candidate: str) -> Entrant:
        return self._ours, candidate

    def _rounds(self, stage: str, entrants: Mapping[str, Entrant]) -> Times:
        """Prepares the entrants, then times them in rounds; one that fails leaves a line and drops out.

        Where the budget ends, the complete rounds count.
        """
        counts, expected = {}, 0.0
        for name, (who, candidate) in entrants.items():
            with self._failures(stage, name):
                compiling = who.ask("prepare", candidate)
                first = Run(*who.ask("run", candidate, 1))
                self._say(f"{stage}: {name} takes {first.seconds:.3g} s the first time, ready after {compiling:.0f} s")
                warm = first if first.seconds > SLOW else Run(*who.ask("run", candidate, 1))
                counts[name] = launches(warm.seconds)
                expected += counts[name] * warm.seconds + PAUSE
        rounds: list[dict[str, Run]] = []
        while len(rounds) < self._repeats and counts:
            if rounds and self._deadline and time.monotonic() + expected > self._deadline:
                self.figures["stopped"] = f"{stage} has {len(rounds)} of {self._repeats} rounds, as the budget allows"
                break
            found: dict[str, Run] = {}
            try:
                for name in list(counts):
                    who, candidate = entrants[name]
                    with self._failures(stage, name):
                        time.sleep(PAUSE)
                        found[name] = Run(*who.ask("run", candidate, counts[name]))
                    if name not in found:
                        del counts[name]
            except OutOfTime:
                if not rounds:
                    raise
                self.figures["stopped"] = f"the budget ended in {stage}"
                break
            rounds.append(found)
        return Times({name: [found[name] for found in rounds] for name in counts})

    @contextlib.contextmanager
    def _failures(self, stage: str, name: str, what: str = "is not measured"):
        """What an entrant cannot do becomes a line of the report."""
        try:
            yield
        except (Failed, ValueError) as error:
            self._failed(stage, name, error, what)

    def _failed(self, stage: str, name: str, error: Exception, what: str = "is not measured") -> None:
        self.figures.setdefault("failed", {})[f"{stage}: {name}"] = str(error)
        self._say(f"{stage}: {name} {what}: {error}")

    def _plan(self, variant: str) -> None:
        """Adds the memory of a step, which is compiled already where it was timed."""
        memory = self.figures["memory"]
        with self._failures("memory", variant):
            memory["state"], memory["step"][variant] = self._ours.ask("memory", variant)
            self._show(table.memory(self.figures, variant))

    def _shares(self, times: Times, name: str, work: str) -> dict:
        """The shares of the peaks that `name` reaches with as many FLOPs as our candidate `work` has."""
        try:
            flops, peak = (self._ours.ask("flops", which) for which in (work, "matmul"))
        except (Failed, OutOfTime):  # the budget ended after the last round
            return {"peak_share": None, "peak_share.range": None}
        devices = self._about["num_devices"]
        shares = times.ratio_entry("peak_share", "matmul", name, flops / (peak * devices))
        if chip := self._about["chip_gflops"]:
            shares["chip_share"] = flops / times.median(name) / (chip * 1e9 * devices)
        if "matmul" in times:
            best = peak / min(times.seconds("matmul")) / 1e9
            self.figures["peak_gflops"] = max(best, self.figures.get("peak_gflops", 0.0))
        return shares

    def _host_share(self, times: Times, name: str) -> float | None:
        """None on a CPU, where the host is the device."""
        return None if self._about["platform"] == "cpu" else times.host_share(name)

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._say(line)
