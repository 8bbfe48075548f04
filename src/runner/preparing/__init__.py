"""How `runner prepare` makes a dataset: what rows hold, which are the same, where each goes, what is written."""
