"""`finetune`, also installed as `kubectl-finetune`: one command line for a cluster and for this machine."""
