"""What the HTTP servers of operator and gateway have in common."""
