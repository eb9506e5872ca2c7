"""`vivit predict`: labels of videos, and of the parts of long videos."""
