"""The HTTP door, ``couturier gateway``: images come in by POST, answers are asked for or streamed.

What it says is bound to what is stored: 202 means that the broker has the image. All it knows is in the
ledger, the results table and the dead letters, so that it may be killed at any time.
"""
