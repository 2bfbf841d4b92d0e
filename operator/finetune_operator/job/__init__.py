"""PURE: what a FineTuneJob should do next, and the manifests of its children. No I/O, no clock of its own.

Start at `decide.decide`: it takes all that was observed about one job and returns what to create, what to delete and
which status to write.
"""
