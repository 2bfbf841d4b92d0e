"""The tasks, one file each: what rows become for a model, its loss, how it is asked, and the scores of its answers."""
