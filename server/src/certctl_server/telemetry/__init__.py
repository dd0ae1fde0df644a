"""What the process tells of itself: traces and metrics."""
