"""The operator: what a FineTuneJob should do next (pure), and the thin shells that do it."""
