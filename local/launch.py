"""Become another program that ends when its parent ends.

``processes`` runs this file: ``python -I -S launch.py PARENT SIGNAL IDENTITY COMMAND…``, with the full path of the
command. It runs between fork and exec because ``preexec_fn`` may deadlock when the parent has threads, and because
``os.unshare`` exists only since Python 3.12. exec keeps the process id, so the parent's child is the program itself.

IDENTITY is the user that the program runs as:

``same``       the caller
``namespace``  the caller, shown as an ordinary user: a user namespace with one mapping
``UID:GID``    that user
"""

import ctypes
import os
import signal
import sys

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
# The id of root inside the namespace. Any id but 0 is possible, because it exists nowhere else.
INSIDE_ID = 1000


def enter_namespace() -> None:
    """Make this process appear to itself as an ordinary user. Nothing else on the machine changes."""
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    # The kernel takes a group mapping from the process itself only once it has given up setgroups.
    for name, line in (("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {uid} 1"), ("gid_map", f"{INSIDE_ID} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(line)


def become(identity: str) -> None:
    """Change to the given identity."""
    if identity == "namespace":
        enter_namespace()
    elif identity != "same":
        uid, gid = (int(number) for number in identity.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def die_with(parent: int, signal_number: int) -> None:
    """Have the kernel send ``signal_number`` when the parent is gone. Only Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # the parent had ended before the call
        raise OSError("the process that started this one is gone")


def main() -> None:
    parent, signal_number, identity, *command = sys.argv[1:]
    # Until exec, Python would exit with code 1 after an interrupt, which looks like a failed program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        become(identity)
        die_with(int(parent), int(signal_number))  # last: a change of credentials clears it
        # Not execvp, which imports more of Python, and the new identity may not be allowed to read that.
        os.execv(command[0], command)  # noqa: S606 — the command is the runner's own
    except OSError as error:
        sys.exit(f"{command[0]}: {error}")


if __name__ == "__main__":
    main()
