"""Real Kubernetes environments for the tests: see README.md beside this file."""
