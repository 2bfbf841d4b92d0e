"""How processes that train one model share the work: one file a strategy behind one interface."""
