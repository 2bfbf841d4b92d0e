"""The Prepare stage: all that can be refused is refused here, before an accelerator is taken."""
