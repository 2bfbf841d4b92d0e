"""Base and saved models as folders: what they are, whether they are whole, their limits and licences."""
