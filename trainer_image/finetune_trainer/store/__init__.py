"""URIs, digests and atomic folders: where artifacts are read from and written to."""
