"""Contestants that misbehave, and one that pretends to be fbjax, for the tests of the benchmark's processes."""

import os
import signal
import time

from fbjax.tools.bench.timing import Run


class Misbehaving:
    def __init__(self, greeting: str):
        self._greeting = greeting

    def greet(self, name: str) -> str:
        return f"{self._greeting} {name}, {os.environ.get('FBJAX_TEST_SHARE')}"

    def refuse(self) -> None:
        raise ValueError("give it another setting")

    def run_out_of_memory(self) -> None:
        raise RuntimeError("\nRESOURCE_EXHAUSTED: out of memory\nand ten lines of advice")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self) -> None:
        time.sleep(60)


class Pretending:
    """Steps of a tenth of a millisecond; `gradient` does not fit, and the third length takes for ever to compile."""

    def __init__(self, config_json: str):
        self._ready = []

    def about(self) -> dict:
        return {
            "device": "cpu",
            "platform": "gpu",
            "num_devices": 1,
            "dtype": "float32",
            "chip_gflops": 2e3,
            "own": "fixed",
            "variants": ["fixed", "gradient", "loss_softmax", "every_16", "estimate"],
            "lengths": [8, 16, 24],
            "products": 8,
            "scored_pairs": 512,
            "requests": [],
            "scores_pairs": True,
        }

    def memory(self, variant: str) -> tuple[int, int]:
        return 1000, 2000

    def prepare(self, name: str) -> float:
        if name == "length 24":
            time.sleep(60)
        self._ready.append(name)
        return 0.0

    def run(self, name: str, count: int) -> Run:
        assert name in self._ready
        if name == "step gradient":
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return Run(1e-3 if name == "matmul" else 1e-4, 5e-5)

    def flops(self, name: str) -> float:
        return 1e9 if name == "matmul" else 1e8
