module finetune-operator/tests/tools/prometheus-operator

go 1.26.0

// Only its CustomResourceDefinitions are read: tests/harness/tools.py.
require github.com/prometheus-operator/prometheus-operator v0.85.0
