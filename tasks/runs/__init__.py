"""What belongs to a run as such: its progress artifacts and the lock on its target."""
