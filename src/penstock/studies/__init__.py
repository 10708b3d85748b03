"""Experiments: functions from settings to records."""
