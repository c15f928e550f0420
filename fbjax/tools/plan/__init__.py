"""`fbjax plan`: memory, FLOPs, collectives, step time and scaling of a config, predicted without the machine."""
