"""Model servers and gateways as objects."""
