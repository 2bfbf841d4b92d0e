"""The operator: what an object of ours should do next (pure), and the thin shells that do it."""
