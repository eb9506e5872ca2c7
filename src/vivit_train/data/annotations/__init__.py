"""Reads annotations of published and custom data sets into tables of clips."""
