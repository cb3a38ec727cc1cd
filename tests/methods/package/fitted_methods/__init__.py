"""Methods of somebody else; the test puts a copy of hubextrap's own `calibrated` beside them, as twin.py."""
