"""``fastlstm serve``: models behind the protocols that clients speak.

From the inside out: ``requests`` says what is asked, in no protocol's words, and how it is refused;
``served`` is one model, its pool and the sequences of its clients; ``store`` keeps these over a
restart. ``tensors`` turns bytes into arrays; ``grpc_v2`` and ``http_v2`` speak the Open Inference
Protocol, ``websocket`` streams; ``access``, ``metrics`` and ``logs`` are what operators want of
each; ``server`` starts and stops all of it.

Needs the packages of ``pip install 'fastlstm[serve]'``.
"""
