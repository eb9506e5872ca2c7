"""URLs of videos: which are read, and by what. A private address is refused unless a person allows it."""

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

PROTOCOLS = ("file", "s3", "gs", "az", "hf", "http", "https", "memory")  # of fsspec's, those that only read files
CACHE = "simplecache::"
WEB = ("http", "https")
PRIVATE = "no public address: data.allow_private_urls=true reads from it"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
ALLOWS_PRIVATE: ContextVar[bool] = ContextVar("allow_private_urls", default=False)
_IPV6 = re.compile(r"\[[0-9a-fA-F:.]+\](?=[:/]|$)")


def is_url(path: str) -> bool:
    return "://" in path


def url_problem(url: str) -> str:
    """Why a URL is not read; "" where it may be.

    fsspec has protocols that run templates, open other files or other hosts, and chains of them.
    """
    protocol, _, rest = url.removeprefix(CACHE).partition("://")
    # of a chain's "::" fsspec makes file systems; an IPv6 address may have it, outside of chains
    address = _IPV6.match(rest) if protocol in WEB and not url.startswith(CACHE) else None
    if protocol not in PROTOCOLS or "::" in rest[address.end() if address else 0 :]:
        return f"{url}: only {', '.join(PROTOCOLS)} are read, and {CACHE} in front of one of them"
    try:
        host = urlsplit(f"//{rest}").hostname if protocol in WEB else None
    except ValueError as error:
        return f"{url}: {reason(error)}"
    if host and not ALLOWS_PRIVATE.get() and _is_private(host):
        return f"{url}: {host} is {PRIVATE}"
    return ""


@contextmanager
def private_urls(allowed: bool) -> Iterator[None]:
    """Within it, http and https may lead to addresses that are not public: this machine, a local network."""
    token = ALLOWS_PRIVATE.set(allowed)
    try:
        yield
    finally:
        ALLOWS_PRIVATE.reset(token)


def _is_private(host: str) -> bool:
    """Whether this is a literal address, in any spelling, that is not public."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f.1, 2130706433
        except OSError:
            return False  # a name: what it leads to is seen when a socket is made
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not inner.is_global:
            return True
    return not address.is_global or address.is_multicast


def _public_socket(address: Any) -> socket.socket:
    """For aiohttp, which asks for a socket once it knows the address: behind redirects and names too."""
    family, kind, protocol, _, (host, *_) = address
    if _is_private(host):
        raise OSError(errno.EACCES, f"{host} is {PRIVATE}")
    return socket.socket(family, kind, protocol)


async def _public_client(**options: Any) -> Any:
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(**options | {"connector": connector, "trust_env": False})


def filesystem_of(url: str) -> tuple[Any, str]:
    """Of this process: fsspec forgets in a fork what its parent had. And the path in it."""
    import fsspec  # takes a tenth of a second, and most data is on the disk

    if problem := url_problem(url):
        if problem.endswith(PRIVATE):  # of this video; other servers may do
            raise VideoError(url, problem.removeprefix(f"{url}: "))
        raise UserError(problem)
    protocol = url.removeprefix(CACHE).partition("://")[0]
    options = {} if protocol not in WEB or ALLOWS_PRIVATE.get() else {"get_client": _public_client}
    try:
        if protocol in WEB and not url.startswith(
            CACHE
        ):  # whose paths are URLs; url_to_fs takes "[::1]" for a chain
            return fsspec.filesystem(protocol, **options), url
        filesystem, path = fsspec.url_to_fs(url, **({protocol: options} if options else {}))
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        advice = f": pip install {package}" if package else ""
        raise UserError(f"{url}: {reason(error)}{advice}") from error
    except ValueError as error:
        raise UserError(f"{url}: {reason(error)}: expected one of fsspec's, such as s3, gs, https") from error
    return filesystem, path


@contextmanager
def fetching(url: str) -> Iterator[None]:
    """What a file system raises becomes a `VideoError`: each has errors of its own."""
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
            raise VideoError(url, f"it leads to {PRIVATE}") from error
        if isinstance(error, FileNotFoundError):
            raise VideoError(url, "file does not exist", kind="missing") from error
        raise VideoError(url, fetch_error(error)) from error


def fetch_error(error: Exception) -> str:
    return f"cannot be fetched ({type(error).__name__}: {reason(error)})"
