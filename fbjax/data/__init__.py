"""Everything that touches TensorFlow: tables, records and the input pipeline. Its import is silenced here."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # only its log line; no TensorFlow kernel of ours uses it
