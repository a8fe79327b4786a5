"""For ``pytest --nbmake chapters``: the chapters run in this Python."""

from bookkit import kernels

kernels.prepare()
