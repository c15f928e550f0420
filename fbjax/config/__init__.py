"""Every setting of a run: its default, its meaning, its range, and how a config file changes it."""

from fbjax.config.load import defaults as defaults
from fbjax.config.load import load_config as load_config
from fbjax.config.schema import Config as Config
