"""The name under which migration 0001 imports the encrypted fields; ``audiences.encryption`` holds the code."""

from audiences.encryption import EncryptedTextField

__all__ = ["EncryptedTextField"]
