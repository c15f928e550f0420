"""Goodput: every second has one cause, work done twice counts once, and FLOPs are those that have to be done."""

from hypothesis import given
from hypothesis import strategies as st

from fbjax.goodput import LOST, STEP, split

OTHER = ("start-up", "records", "compile", "input", "checkpoint", "evaluation")
SAVE_EVERY = 3


@st.composite
def killed_runs(draw):
    """A run second by second: attempts of [(cause, steps done before, steps done after)], where each begins, and pauses.

    A step takes one to four seconds. An attempt begins at a checkpoint that an earlier one has reached, or at 0.
    """
    attempts, firsts, saved = [], [], {0}
    for _ in range(draw(st.integers(1, 4))):
        step = first = draw(st.sampled_from(sorted(saved)))
        seconds = [("start-up", None, None)] * draw(st.integers(1, 3))
        begun = draw(st.integers(0, 3)) > 0  # else killed before it knew where to begin
        for _ in range(draw(st.integers(0, 12)) if begun else 0):
            seconds += [(draw(st.sampled_from(OTHER)), step, step)] * draw(st.integers(0, 2))
            lasts = draw(st.integers(1, 4))
            unfinished = draw(st.integers(0, 9)) == 0
            seconds += [(STEP, step, step)] * (lasts - 1) + [(STEP, step, step + (not unfinished))]
            if unfinished:
                break
            step += 1
            if step % SAVE_EVERY == 0:
                saved.add(step)
        attempts.append(seconds)
        firsts.append(first if begun else None)
    return attempts, firsts, draw(st.lists(st.integers(0, 50), min_size=len(attempts), max_size=len(attempts)))


def written(run, cuts):
    """The events that such a run writes: a line at each step's end, and here and there a line between."""
    attempts, firsts, pauses = run
    clock = 1000
    for seconds, first, pause in zip(attempts, firsts, pauses, strict=True):
        clock += pause
        yield {"began": clock}
        spent, step = {}, None
        for cause, before, after in seconds:
            if before is not None and step is None:
                yield {"spent": spent, "step": None}
                yield {"from": first, "of": 10_000}
                spent, step = {}, first
            spent[cause] = spent.get(cause, 0) + 1
            clock += 1
            if after != before or next(cuts):
                yield {"spent": spent, "step": after, "figures": {"loss": 1.0}}
                spent, step = {}, after
        if spent:
            yield {"spent": spent, "step": step}
        if step is None and first is not None:
            yield {"from": first, "of": 10_000}


def second_by_second(run):
    """The same by brute force: a second of a step is lost where a later attempt began before that step was done."""
    attempts, firsts, pauses = run
    sums = {}
    for i, seconds in enumerate(attempts):
        for cause, before, _ in seconds:
            if cause == STEP:
                again = any(first is not None and first <= before for first in firsts[i + 1 :])
                cause = LOST if again else STEP
            sums[cause] = sums.get(cause, 0) + 1
    return sums, sum(pauses[1:])


@given(killed_runs(), st.randoms(use_true_random=False))
def test_every_second_of_a_killed_run_has_the_cause_that_a_brute_force_reckoning_gives_it(run, random):
    found = split(written(run, iter(lambda: random.random() < 0.3, None)))
    sums, down = second_by_second(run)
    rounded = {cause: round(seconds, 6) for cause, seconds in found.seconds.items() if round(seconds, 6)}
    assert rounded == sums and found.down == down
    assert abs(found.wall - sum(map(len, run[0]))) < 1e-6
    assert abs(found.goodput - sums.get(STEP, 0) / sum(sums.values())) < 1e-9
