"""A benchmark for each promise: what it costs, beside a floor that is measured in the same run, a moment before or after.

`make bench`, or `python -m bench [--short] [NAME …]`. What is compared is a ratio: absolute times are the machine's, and change with the
hour. `python -m app bench` measures the whole gateway; these say which part of it has changed.
"""
