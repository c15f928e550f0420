"""The figures of `fbjax bench` as lines of text, stage by stage."""

GIB = 2**30
BOUND = 0.8  # of a step: from here on the device waits for the host


def heading(about: dict, repeats: int) -> str:
    rounds = f", medians of {repeats} rounds and their range" if repeats else ""
    return f"{about['num_devices']} x {about['device']}, {about['dtype']}{rounds}"


def memory(figures: dict, variant: str) -> list[str]:
    plan = figures["memory"]
    return [f"memory, {variant}: state {plan['state'] / GIB:.2f} GiB, step {plan['step'][variant] / GIB:.2f} GiB"]


def step(figures: dict) -> list[str]:
    train = figures["train"]
    lines = [f"train: {_number(train, 'pairs_per_second')} pairs/s{_share(train)}{_bound(train)}"]
    if "peak_gflops" in figures:
        lines.append(f"a matrix product reaches {figures['peak_gflops']:,.0f} GFLOP/s")
    return lines


def adaptive(figures: dict) -> list[str]:
    found = figures["train"]["adaptive"]
    names = [name for name in found if not name.endswith(".range")]
    return [f"adaptive, {name}: {_number(found, name)} x the time of fixed weights" for name in names]


def lengths(figures: dict) -> list[str]:
    rates = figures["train"]["by_length"]
    return [f"train, {length} pieces: {rate:,.0f} pairs/s" for length, rate in rates.items()]


def rate(figures: dict, stage: str, unit: str) -> list[str]:
    found = figures[stage]
    return [f"{stage}: {_number(found, f'{unit}_per_second')} {unit}/s{_share(found)}"]


def latency(figures: dict) -> list[str]:
    """A row for each kind of request."""
    heads = ("layers", "products", "text", "products are", "requests", "p50", "p95", "p99", "/ padded", "/ deepest")
    rows = [
        (
            f"{found['layers']}",
            f"{found['products']}",
            "padded" if found["padded"] else "unpadded",
            "cached" if found["cached"] else "computed",
            f"{found['requests']:,}",
            *(f"{found[name]:,.1f}" for name in ("p50", "p95", "p99")),
            *("" if found[name] is None else f"{found[name]:.2f}" for name in ("vs_padded", "vs_deepest")),
        )
        for found in figures["latency"]
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return ["latency: ms of a request for one text; ratios are of medians within a round", *lines]


def torch(figures: dict, part: str) -> list[str]:
    """PyTorch beside fbjax at the same work, in training or in scoring."""
    own, lines = figures["torch"][part], []
    for name, found in own.items():
        who = "fbjax, the same work" if name == "fbjax" else f"PyTorch, {name.replace('_', ' ')}"
        ratio = "" if name == "fbjax" else f", {_number(figures[part], f'vs_torch_{name}')} x our time"
        lines.append(
            f"{part}, {who}: {_number(found, 'pairs_per_second')} pairs/s{ratio}{_share(found)}{_bound(found)}"
        )
    return lines


def trace(figures: dict) -> list[str]:
    if not figures["trace"]:
        return ["the profile names no instruction of the step"]
    return [f"{part:<14}{share:>6.1%} of the step's time" for part, share in figures["trace"].items()]


def _number(part: dict, key: str) -> str:
    if part.get(key) is None:
        return "not measured"
    digits = 0 if part[key] >= 100 else 2
    low, high = part[f"{key}.range"]
    return f"{part[key]:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def _share(part: dict) -> str:
    shares = [] if part.get("peak_share") is None else [f"{part['peak_share']:.0%} of a matrix product's FLOP/s"]
    shares += [f"{part['chip_share']:.0%} of the data sheet's"] if part.get("chip_share") else []
    return ", " + " and ".join(shares) if shares else ""


def _bound(part: dict) -> str:
    if part.get("host_share") is None:
        return ""
    bound = "host" if part["host_share"] >= BOUND else "device"
    return f", {bound}-bound: the host launches a step in {part['host_share']:.0%} of its time"
