"""Tests run on the CPU with eight simulated devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from hypothesis import settings  # noqa: E402

settings.register_profile("fbjax", deadline=None, max_examples=40)
settings.load_profile("fbjax")
