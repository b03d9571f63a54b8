"""One folder for each file format: exporter, session, reader."""
