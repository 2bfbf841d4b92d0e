"""What runs inside the training containers, one stage per process: prepare, train, evaluate, serve."""
