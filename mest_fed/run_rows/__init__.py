"""The rows and the summary of a run folder: what a run writes, and what the report reads.

Each class is one kind of JSON object. A run makes instances and writes them with
:func:`mest_fed.run_rows.row.as_row`; the order of the fields is that of the keys. The report reads
the same classes and checks the limits of their values. A field that runs of earlier versions lack
has a default.
"""
