"""What `fbjax plan` says of a config before there is a machine: memory, FLOPs, collectives, step time, scaling."""
