"""PURE: rows of statistics -> a verdict -> what the job's policy makes of it."""
