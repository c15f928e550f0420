"""The packages of the wheel: fbjax, and the folder configs as fbjax.configs. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["fbjax*"]), "fbjax.configs"], package_dir={"fbjax.configs": "configs"})
