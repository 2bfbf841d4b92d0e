"""The loop, its schedule, batches and checkpoints, and the rehearsal before it; below it methods and strategies."""
