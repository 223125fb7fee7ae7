"""One family of pages per file, beside `templates/<family>/`."""
