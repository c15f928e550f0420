"""`fbjax bench`: how fast a config trains and scores on this device, on synthetic batches, without TensorFlow."""
