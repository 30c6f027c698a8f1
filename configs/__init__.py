"""Configurations: one file for each data set, and the published ones."""
