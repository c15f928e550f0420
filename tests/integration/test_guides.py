"""A page's files are written to an empty folder and its commands are run there, with two steps of training."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"```python\n(# file: (\S+)\n.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:fbjax|python) .*$", re.MULTILINE)
SHORT = {
    "draw": ["--products", "120"],
    "train": ["--config.train.num_steps=2", "--config.train.warmup_steps=1", "--config.train.save_every=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add-a-task", "add-a-backbone"])
def test_what_a_guide_adds_trains(page, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = (ROOT / f"docs/guides/{page}.md").read_text(encoding="utf-8")
    for code, name in FILE.findall(text):
        (tmp_path / name).write_text(code, encoding="utf-8")
    for command in COMMAND.findall(text):
        program, *arguments = shlex.split(command)
        module = ["-m", "fbjax"] if program == "fbjax" else []
        run = [sys.executable, *module, *arguments, *SHORT.get(arguments[0], [])]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert list((tmp_path / "runs").glob("*/checkpoints/*")), "no checkpoint was saved"
