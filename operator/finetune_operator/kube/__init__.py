"""The Kubernetes shell: the only code of ours that knows kopf and the Kubernetes client."""
