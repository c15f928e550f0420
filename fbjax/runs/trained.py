"""What training has left in a workdir: the parameters of a checkpoint."""

from pathlib import Path

from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run
from fbjax.runs.state import abstract_state, make_optimizer
from fbjax.tasks.objective import Pretraining


def load_params(run: Run, workdir: str | Path, mesh, step: int | None = None) -> tuple[int, dict]:
    """(step, parameters) of a checkpoint: by default the best by validation AUC."""
    objective = Pretraining(run.model, run.feature_input, run.config.tasks, run.vocabulary.mask_id)
    shape = abstract_state(objective, make_optimizer(run.config.train), run.config, mesh)
    with Checkpoints(workdir) as checkpoints:
        there = checkpoints.steps()
        if step is None:
            step = checkpoints.best_step()
        if step not in there:
            known = f"there are {', '.join(map(str, there))}" if there else "there is none yet"
            wanted = "checkpoint" if step is None else f"checkpoint {step}"
            raise FileNotFoundError(f"no {wanted} in {workdir}: {known}")
        return step, checkpoints.restore_params(step, shape)


def newest_step(workdir: str | Path) -> int | None:
    """The step of the last checkpoint, None where there is none."""
    with Checkpoints(workdir) as checkpoints:
        return max(checkpoints.steps(), default=None)
