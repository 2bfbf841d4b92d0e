"""The serving runtimes: one version of an endpoint, answering over HTTP until it is told to stop."""
