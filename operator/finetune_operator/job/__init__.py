"""A FineTuneJob: what it should do next, and the children that this takes.

All but observe, controller and metrics is pure.

Start at `decide.decide`: it takes all that was observed about one job and returns what to create, what to delete and
which status to write.
"""
