"""`vivit explain`: where and when a model looks."""
