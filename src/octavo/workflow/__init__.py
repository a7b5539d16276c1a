"""The road of §5 that drives itself: candidate after candidate, each committed to a study, until the goal is met."""
