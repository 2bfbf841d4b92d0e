"""Which version is next, by which plan, where its rollout is, and the routes that follow."""
