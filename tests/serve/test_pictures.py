"""Pictures of strangers: limits, bombs, addresses. No test uses a network beyond loopback."""

import base64
import io
import socket
import struct
import threading
import zlib
from contextlib import contextmanager

import pytest
from PIL import Image

from vistoken.serve.addresses import is_public
from vistoken.serve.errors import RequestError
from vistoken.serve.fetch import SafeFetch
from vistoken.serve.pictures import open_pictures

from .conftest import asked, data_url, image_part
from .test_app import post, refused

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "8.8.8.8", "2606:4700::1111", "1.1.1.1"],
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd12:3456::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "localhost", "",
    ],
)  # fmt: skip
def test_addresses_that_strangers_may_not_reach(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "ftp://a/b", "examples/x.png",
        "gopher://a", "data:image/png,abc", "data:", "data:image/png;base64", "", "javascript:1",
        "data:image/png;base64,@@@@", "data:image/png;base64,AAA", "data:;base64,", "//host/x",
        " http://a/b", "httpx://a/b",
    ],
)  # fmt: skip
def test_only_whole_data_urls(url):
    with pytest.raises(RequestError) as caught:
        open_pictures([url], 10**6, None)
    assert caught.value.status == 400


def test_web_addresses_are_off_by_default(client):
    called = []
    body = asked(image_part("https://example.org/a.png"), "What?")
    response = post(client(fetch=lambda *a: called.append(a)), body)
    refused(response, 400, "--image-urls", code="image_urls_not_allowed")
    assert not called


def test_web_addresses_where_they_are_allowed(client, picture):
    stream = io.BytesIO()
    picture(30, 30).save(stream, "PNG")
    body = asked(image_part("https://example.org/a.png"), "What?")
    response = post(client(fetch=lambda *a: stream.getvalue(), image_urls=True), body)
    assert response.status_code == 200


def png_header(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 2**20)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed)


def as_data_url(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (8000, 8000)])
def test_bombs_are_refused_before_they_are_decoded(client, size, monkeypatch):
    def decoded(*args):
        raise AssertionError("the bomb was unpacked")

    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    response = post(client(), asked(image_part(as_data_url(png_header(*size))), "What?"))
    refused(response, 400, code="invalid_image")


def test_pixels_count_over_all_pictures_of_a_request(client, picture):
    url = data_url(picture(50, 50))
    limited = {"max_pixels": 6000, "max_images": 3}
    assert post(client(**limited), asked(image_part(url), image_part(url), "a")).status_code == 200
    response = post(client(**limited), asked(*[image_part(url)] * 3, "a"))
    refused(response, 400, "image 2", code="invalid_image")
    response = post(client(**limited), asked(*[image_part(url)] * 4, "a"))
    refused(response, 400, "4 pictures", code="too_many_images")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9]
)
def test_what_is_no_picture(client, data):
    refused(post(client(), asked(image_part(as_data_url(data)), "a")), 400, "image 0")


# --- fetching -------------------------------------------------------------------------------


def respond(body=b"", status="200 OK", **headers):
    headers = {"Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


@contextmanager
def web(*answers):
    """A server on loopback that gives these answers to its connections, in order.

    Yields a connect function that leads there whatever address it is given, and what was asked:
    (address, port, request) of every connection.
    """
    server = socket.create_server(("127.0.0.1", 0))
    asked_for, over = [], threading.Event()

    def serve():
        for answer in answers:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                asked_for[-1] += (peer.recv(65536).decode("latin-1"),)
                for piece in [answer] if isinstance(answer, bytes) else answer(over):
                    try:
                        peer.sendall(piece)
                    except OSError:
                        break

    def connect(address, timeout):
        asked_for.append(address)
        return socket.create_connection(server.getsockname(), timeout)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield connect, asked_for
    finally:
        over.set()
        server.close()


def names(**known):
    """A resolver that knows these names; each value is one answer or a list of answers in turn."""
    turns = {name: list(found) for name, found in known.items()}

    def resolve(host, port):
        name = host.replace(".", "_").replace("-", "_")
        if name not in turns:
            raise socket.gaierror("unknown name")
        answers = turns[name]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return resolve


def fetcher(connect, resolve, **more):
    options = {"max_bytes": 1000, "timeout_s": 5.0, "redirects": 2, **more}
    return SafeFetch(**options, resolve=resolve, connect=connect)


HERE = names(pictures_test=[[PUBLIC]])


def test_a_picture_is_fetched_from_the_address_that_was_checked():
    with web(respond(b"picture")) as (connect, seen):
        found = fetcher(connect, HERE)("http://pictures.test:8080/a b.png?x=1&y=ü", "image 0")
    assert found == b"picture"
    (address, port, request) = seen[0]
    assert (address, port) == (PUBLIC, 8080)
    assert request.startswith("GET /a%20b.png?x=1&y=%C3%BC HTTP/1.1\r\n")
    assert "Host: pictures.test:8080\r\n" in request
    assert "identity" in request


def fails(fetch, url, *words, code="image_fetch_failed"):
    with pytest.raises(RequestError) as caught:
        fetch(url, "image 0")
    error = caught.value
    assert (error.status, error.code) == (400, code)
    for word in words:
        assert word in error.message
    return error.message


def no_connection(address, timeout):
    raise AssertionError(f"connected to {address}")


@pytest.mark.parametrize(
    "found",
    [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], [PUBLIC, "192.168.0.1"], [],
     ["::ffff:127.0.0.1"]],
)  # fmt: skip
def test_names_that_lead_inside_are_not_connected_to(found):
    fetch = fetcher(no_connection, names(inside_test=[found]))
    message = fails(fetch, "http://inside.test/", "public internet", code="image_url_not_public")
    assert not any(address in message for address in found)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0/", "http://2130706433/",
     "http://0x7f.1/", "http://127.1:80/", "http://[::ffff:127.0.0.1]/"],
)  # fmt: skip
def test_the_systems_own_resolver_and_addresses_in_disguise(url):
    fetch = SafeFetch(1000, 5.0, 0, connect=no_connection)
    with pytest.raises(RequestError):
        fetch(url, "image 0")


def test_a_name_that_changes_its_address_gains_nothing():
    """Rebinding: the name is asked once per connection, and that answer is the one used."""
    resolve = names(rebind_test=[[PUBLIC], ["127.0.0.1"]])
    with web(respond(b"picture")) as (connect, seen):
        assert fetcher(connect, resolve)("http://rebind.test/", "image 0") == b"picture"
    assert [entry[0] for entry in seen] == [PUBLIC]


@pytest.mark.parametrize(
    "target",
    ["http://inside.test/secret", "http://127.0.0.1/", "//inside.test/", "http://[::1]:80/"],
)
def test_every_redirect_is_checked(target):
    resolve = names(
        pictures_test=[[PUBLIC]],
        inside_test=[["10.0.0.7"]],
        **{"127_0_0_1": [["127.0.0.1"]], "::1": [["::1"]]},
    )
    with web(respond(status="302 Found", Location=target)) as (connect, seen):
        fails(fetcher(connect, resolve), "http://pictures.test/", code="image_url_not_public")
    assert len(seen) == 1


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://pictures.test/", "data:,x", "gopher://x"]
)
def test_redirects_to_other_schemes(target):
    with web(respond(status="301 Moved", Location=target)) as (connect, seen):
        fails(fetcher(connect, HERE), "http://pictures.test/", "no http(s) URL")
    assert len(seen) == 1


def test_redirects_are_followed_but_not_for_ever():
    moved = respond(status="307 Temporary Redirect", Location="/next")
    with web(moved, moved, respond(b"here")) as (connect, _):
        assert fetcher(connect, HERE)("http://pictures.test/", "image 0") == b"here"
    with web(moved, moved, moved) as (connect, seen):
        fails(fetcher(connect, HERE), "http://pictures.test/", "redirects")
    assert len(seen) == 3


def test_size_is_limited_whether_announced_or_not():
    long = b"x" * 5000
    with web(respond(long)) as (connect, _):
        fails(fetcher(connect, HERE), "http://pictures.test/", "1,000 bytes")
    with web(b"HTTP/1.1 200 OK\r\n\r\n" + long) as (connect, _):
        fails(fetcher(connect, HERE), "http://pictures.test/", "1,000 bytes")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1388\r\n" + long
    with web(chunked) as (connect, _):
        fails(fetcher(connect, HERE), "http://pictures.test/", "1,000 bytes")


def drip(beginning):
    """Send something, then a byte now and then, until the test is over."""

    def answer(over):
        yield beginning
        while not over.wait(0.02):
            yield b"x"

    return answer


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_time_is_limited_however_slowly_something_comes(beginning):
    with web(drip(beginning)) as (connect, _):
        fetch = fetcher(connect, HERE, timeout_s=0.3, max_bytes=10**6)
        fails(fetch, "http://pictures.test/", "0.3 s")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (respond(b"no", status="404 Not Found"), "404"),
        (respond(b"no", status="500 Oops"), "500"),
        (respond(b"x", Content_Encoding="gzip"), "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "broke off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer"),
        (b"", "does not answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "does not answer"),
    ],
)
def test_answers_that_are_no_picture(answer, words):
    with web(answer) as (connect, _):
        fails(fetcher(connect, HERE), "http://pictures.test/", words)


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///a", "http://user:pw@pictures.test/", "http://pictures.test:99999/",
     "http://pictures.test:0/", "http://[::1", "http://unknown.test/",
     "http://pictures.test/" + "a" * 9000,
     "http://\ud800/", "http://a\u0000b/", "http://" + "a" * 300 + "/"],
)  # fmt: skip
def test_addresses_that_make_no_sense(url):
    fails(fetcher(no_connection, HERE), url)


def test_a_server_that_does_not_speak_tls():
    with web(respond(b"plain")) as (connect, _):
        fails(fetcher(connect, HERE), "https://pictures.test/", "does not answer")
