"""`vivit doctor`: one pass over a data set's files that says what is wrong with them, before training does."""
