"""Methods, replicates and verdicts: is an ensemble worth its cost?"""
