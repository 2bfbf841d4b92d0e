"""How a container's processes live and die: launch, gang, signals, termination message, progress, logs."""
