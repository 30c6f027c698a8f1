"""Reading and writing the files of the original implementations."""
