"""What gateways report about two versions, counted and judged."""
