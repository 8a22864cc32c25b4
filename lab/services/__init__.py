"""The lab's services: what they are, how they are started, watched and stopped."""
