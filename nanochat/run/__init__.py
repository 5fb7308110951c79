"""The stage contract: declarations, configuration, records, events, launcher."""
