"""Calibration errors and temperature scaling."""
