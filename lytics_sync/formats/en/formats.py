"""How Django writes moments, wherever a page leaves that to it: as everywhere else in the admin."""

DATETIME_FORMAT = r"Y-m-d H:i:s \U\T\C"
