"""PURE: what a ModelEndpoint should do next, its routes and its children."""
