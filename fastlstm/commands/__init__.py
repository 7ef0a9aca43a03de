"""The commands of ``fastlstm``, a file each, and what they show.

A command has a ``SUMMARY``, ``add_arguments(parser)`` and ``run(arguments)``, which returns the
exit code. It shows, as a page or with ``--json`` as one object, what a second file finds out:
``verification`` for ``verify``, ``latency`` and ``plot`` for ``bench``, ``demonstration`` for
``demo``, ``generation`` for ``generate`` and ``machine`` for ``doctor``.
"""
