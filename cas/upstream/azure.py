"""Where Azure's own tools are told of an account: a connection string in the environment.

Rule: pure; what `obstore` reads of the environment itself is not read here.  No error holds what
may be a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

from cas.errors import ConfigError

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
"""As the portal shows it: ``AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net``.
https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string"""

_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"


def settings(environ: Mapping[str, str], endpoint: str = "") -> dict[str, str | bool]:
    """obstore's options for an account, besides those that it finds in `environ` by itself;
    `endpoint` is where an operator says that it is.  Raises ConfigError."""
    found: dict[str, str | bool] = {}
    if environ.get(CONNECTION) and not environ.get(_ACCOUNT):
        found |= _connection(environ[CONNECTION])
    if endpoint:
        # Azurite's own address would win over it.
        found |= {"endpoint": endpoint, "use_emulator": False}
    elif "endpoint" not in found:
        for name in _ENDPOINTS:
            if environ.get(name):
                found["endpoint"] = environ[name]
                break
    return found


def _connection(text: str) -> dict[str, str | bool]:
    parts: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{CONNECTION}: expected Name=value, with ; in between")
        parts[name.lower()] = value
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        return {"use_emulator": True}
    if "accountname" not in parts and "blobendpoint" not in parts:
        raise ConfigError(f"{CONNECTION}: it has neither AccountName nor BlobEndpoint")
    found: dict[str, str | bool] = {"use_emulator": False}
    account = parts.get("accountname", "")
    endpoint = parts.get("blobendpoint", "").rstrip("/")
    if not account:
        # https://account.blob.core.windows.net
        account = endpoint.partition("://")[2].partition(".")[0]
    found["account_name"] = account
    if endpoint:
        found["endpoint"] = endpoint
    elif "endpointsuffix" in parts or "defaultendpointsprotocol" in parts:
        protocol = parts.get("defaultendpointsprotocol", "https").lower()
        suffix = parts.get("endpointsuffix", "core.windows.net")
        found["endpoint"] = f"{protocol}://{account}.blob.{suffix}"
    if "accountkey" in parts:
        found["account_key"] = parts["accountkey"]
    elif "sharedaccesssignature" in parts:
        found["sas_key"] = parts["sharedaccesssignature"].removeprefix("?")
    return found
