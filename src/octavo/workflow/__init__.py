"""The workflow of the paper, which drives itself: candidate after candidate, each committed to a study (§6)."""
