"""Opens URLs with fsspec, from allowed protocols only; private addresses need the user's permission."""

import errno
import ipaddress
import re
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from vivit_train.utils.errors import UserError, VideoError, reason

# The fsspec protocols that only read files.
PROTOCOLS = ("file", "s3", "gs", "az", "hf", "http", "https", "memory")
CACHE = "simplecache::"
WEB = ("http", "https")
PRIVATE = "no public address; set data.allow_private_urls=true to read from it"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
ALLOWS_PRIVATE: ContextVar[bool] = ContextVar("allow_private_urls", default=False)
_IPV6 = re.compile(r"\[[0-9a-fA-F:.]+\](?=[:/]|$)")


def is_url(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def url_problem(url: str) -> str:
    """Returns the reason why a URL is refused, or "" if it is allowed.

    Some fsspec protocols run templates or open other files or hosts, and protocols can be chained.
    """
    protocol, _, rest = url.removeprefix(CACHE).partition("://")
    # "::" chains file systems in fsspec. An IPv6 address may contain it too, if the URL is not a chain.
    address = _IPV6.match(rest) if protocol in WEB and not url.startswith(CACHE) else None
    if protocol not in PROTOCOLS or "::" in rest[address.end() if address else 0 :]:
        return f"{url}: only {', '.join(PROTOCOLS)} are supported, optionally after the prefix {CACHE}"
    try:
        host = urlsplit(f"//{rest}").hostname if protocol in WEB else None
    except ValueError as error:
        return f"{url}: {reason(error)}"
    if host and not ALLOWS_PRIVATE.get() and _is_private(host):
        return f"{url}: {host} is {PRIVATE}"
    return ""


@contextmanager
def private_urls(allowed: bool) -> Iterator[None]:
    """Sets whether http and https URLs may lead to this machine or a local network inside this context."""
    token = ALLOWS_PRIVATE.set(allowed)
    try:
        yield
    finally:
        ALLOWS_PRIVATE.reset(token)


def _is_private(host: str) -> bool:
    """Returns whether `host` is a literal IP address, in any notation, that is not public."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f.1, 2130706433
        except OSError:
            return False  # a host name is checked when its socket is created
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not inner.is_global:
            return True
    return not address.is_global or address.is_multicast


def _public_socket(address: Any) -> socket.socket:
    """Creates a socket for aiohttp, unless the resolved address is private.

    aiohttp calls this after it has resolved a host name or followed a redirect, so it checks those addresses too.
    """
    family, kind, protocol, _, (host, *_) = address
    if _is_private(host):
        raise OSError(errno.EACCES, f"{host} is {PRIVATE}")
    return socket.socket(family, kind, protocol)


async def _public_client(**options: Any) -> Any:
    """Returns an aiohttp session that connects only to public addresses."""
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(**options | {"connector": connector, "trust_env": False})


def filesystem_of(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path within it.

    The file system belongs to this process, because fsspec clears its instance cache after a fork.

    Raises:
        VideoError: If the address is private.
        UserError: If the URL is not supported, or if a package for its protocol is missing.
    """
    import fsspec  # the import takes a tenth of a second, and most data is on the disk

    if problem := url_problem(url):
        if problem.endswith(PRIVATE):  # only this video is affected, since others may have public addresses
            raise VideoError(url, problem.removeprefix(f"{url}: "))
        raise UserError(problem)
    protocol = url.removeprefix(CACHE).partition("://")[0]
    options = {} if protocol not in WEB or ALLOWS_PRIVATE.get() else {"get_client": _public_client}
    try:
        # The paths of these file systems are URLs, and url_to_fs would take "[::1]" for a chain.
        if protocol in WEB and not url.startswith(CACHE):
            return fsspec.filesystem(protocol, **options), url
        filesystem, path = fsspec.url_to_fs(url, **({protocol: options} if options else {}))
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        advice = f": pip install {package}" if package else ""
        raise UserError(f"{url}: {reason(error)}{advice}") from error
    except ValueError as error:
        raise UserError(f"{url}: {reason(error)}; expected a protocol such as s3, gs or https") from error
    return filesystem, path


@contextmanager
def fetching(url: str) -> Iterator[None]:
    """Converts the errors of a file system, which vary between file systems, to a `VideoError`."""
    try:
        yield
    except (UserError, tarfile.TarError):
        raise
    except VideoError:
        raise
    except Exception as error:
        causes: list[BaseException | None] = [error]
        while causes[-1] is not None and len(causes) < 10:
            causes.append(causes[-1].__cause__ or causes[-1].__context__)
        if any(PRIVATE in str(cause) for cause in causes):
            raise VideoError(url, f"the URL leads to {PRIVATE}") from error
        if isinstance(error, FileNotFoundError):
            raise VideoError(url, "file does not exist", kind="missing") from error
        raise VideoError(url, fetch_error(error)) from error


def fetch_error(error: Exception) -> str:
    """Returns the reason for a `VideoError` if fetching has failed."""
    return f"cannot be fetched ({type(error).__name__}: {reason(error)})"
