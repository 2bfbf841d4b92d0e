"""Which weights are trained, and what is saved of them: one file a method behind one interface."""
