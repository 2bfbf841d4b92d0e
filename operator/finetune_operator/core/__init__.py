"""What all kinds share: ports, settings, the work queue, conditions, statuses, names, times, whose an object is."""
