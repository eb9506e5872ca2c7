"""Reads annotations of published and own data sets into tables of clips."""
