"""The status routes of a job."""
