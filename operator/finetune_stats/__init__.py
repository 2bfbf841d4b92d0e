"""The statistics of "is the candidate better than what runs now?": pure functions of numbers, numpy and scipy only.

Offline, once, on a held-out set (evaluate, the gates): start at `compare.compare_metric`, judge with `verdict.judge`.

Live, looked at all the time (shadow, canary, guard): `betting` for paired scores, `eprocess` for the rates of two arms,
`edetector` for changes after a promotion, `budget` to share one error probability among them, `weights` to keep one
user or one repeated prompt from counting as many. All states are frozen, and go to JSON and back.
"""
