"""What the processes of operator and gateway share: answers in plain words over HTTP, settings from the environment."""
