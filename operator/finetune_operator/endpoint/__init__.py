"""A ModelEndpoint: what it should do next, its routes and its children.

All but observe, controller and metrics is pure.

Start at `decide.decide`; where a rollout is, is one of the states of `rollout/state.py`.
"""
