"""One Job and its pods, whoever owns it: its manifests, size and orders; what exists of it; what it came to."""
