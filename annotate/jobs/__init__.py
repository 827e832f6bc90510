"""The Apache Beam jobs: what runs on every file, atomic outputs, exact restart."""
