"""Experiments on a real pair of accounts that answer what the vendors don't document (docs/learn-account.md).

``registry`` lists the experiments, ``lab`` holds what they share, ``cleaning`` removes what they made, ``report`` is
the table and the file. ``learn_account`` runs them.
"""
