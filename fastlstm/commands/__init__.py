"""The commands of ``fastlstm``, a file each, and what they show.

A command has a ``SUMMARY``, ``add_arguments(parser)`` and ``run(arguments)``, which returns the
exit code. It shows, as a page or with ``--json`` as one object, what a second file finds out:
``conversion`` for ``convert`` and ``verify``, ``latency`` and ``cells`` for ``bench``,
``demonstration`` for ``demo``, ``texts`` for ``generate`` and ``perplexity``, ``series`` for
``forecast`` and ``machine`` for ``doctor``; ``plot`` draws.
"""
