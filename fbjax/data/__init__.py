"""Tables, records and the input pipeline. Silences TensorFlow's import messages."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # avoids a log line; the pipelines do not use it
