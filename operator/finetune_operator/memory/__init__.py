"""A cluster in memory, for tests: the Cluster port without a server, by the same conformance tests as the others."""
