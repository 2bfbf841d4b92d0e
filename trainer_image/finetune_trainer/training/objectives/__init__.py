"""What a step makes smaller: one file an objective behind one interface."""
