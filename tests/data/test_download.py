"""The downloader against a server on this machine, and archives that try to break out."""

import gzip
import hashlib
import io
import os
import socket
import sys
import tarfile

import pytest

from gpucnn.data.download import RemoteFile, atomic_file, cache_folder, extract, fetch

BODY = bytes(range(256)) * 1000


def remote(*urls, body=BODY, name="data.bin"):
    return RemoteFile(name, urls, len(body), hashlib.sha256(body).hexdigest())


def test_the_file_arrives_whole_and_alone(server, tmp_path):
    server.pages["/data.bin"] = (200, {}, BODY)
    path = fetch(remote(server.url + "/data.bin"), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.bin"
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == ["data.bin"]
    assert server.hits == [("/data.bin", "gpucnn")]


def test_a_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY)
    fetch(remote(server.url + "/data.bin"), tmp_path)
    assert server.hits == []


def test_a_wrong_file_that_is_there_is_replaced(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"half of it")
    server.pages["/data.bin"] = (200, {}, BODY)
    assert fetch(remote(server.url + "/data.bin"), tmp_path).read_bytes() == BODY


def test_a_redirect_is_followed(server, tmp_path):
    server.pages["/old"] = (302, {"Location": server.url + "/data.bin"}, b"")
    server.pages["/data.bin"] = (200, {}, BODY)
    assert fetch(remote(server.url + "/old"), tmp_path).read_bytes() == BODY


def test_the_next_address_is_tried(server, nowhere, tmp_path):
    server.pages["/data.bin"] = (200, {}, BODY)
    file = remote(nowhere + "/data.bin", server.url + "/gone", server.url + "/data.bin")
    assert fetch(file, tmp_path).read_bytes() == BODY
    assert os.listdir(tmp_path) == ["data.bin"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ((200, {}, BODY[:-1] + b"x"), "has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        ((200, {}, BODY[:1000]), "ended after 1000 of 256000 bytes"),
        ((200, {"Content-Length": str(len(BODY))}, BODY[:1000]), "(ended after 1000 of 256000 bytes|IncompleteRead)"),
        ((200, {}, BODY + b"x"), "more than the 256000 bytes expected"),
        ((404, {}, b""), "HTTP Error 404: Not Found"),
        ((503, {}, b""), "HTTP Error 503: Service Unavailable"),
    ],
    ids=["wrong hash", "short", "cut connection", "long", "404", "503"],
)
def test_what_is_wrong_is_said_and_nothing_is_left(server, tmp_path, page, message):
    server.pages["/data.bin"] = page
    with pytest.raises(RuntimeError, match=rf"could not download data.bin:\n  {server.url}/data.bin: {message}"):
        fetch(remote(server.url + "/data.bin"), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_wrong_download_leaves_the_file_that_was_there(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"older")
    server.pages["/data.bin"] = (200, {}, BODY[::-1])
    with pytest.raises(RuntimeError):
        fetch(remote(server.url + "/data.bin"), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"older"


def test_a_refused_connection_is_said_for_every_address(nowhere, tmp_path):
    with pytest.raises(RuntimeError, match=rf"{nowhere}/a: .*refused.*\n  {nowhere}/b: .*refused"):
        fetch(remote(nowhere + "/a", nowhere + "/b"), tmp_path)


def test_a_server_that_says_nothing_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data.bin"
        with pytest.raises(RuntimeError, match=f"{url}: timed out"):
            fetch(remote(url), tmp_path, timeout=0.1)


def test_progress_is_told_the_bytes(server, tmp_path):
    server.pages["/data.bin"] = (200, {}, BODY)
    calls = []
    fetch(remote(server.url + "/data.bin"), tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (256000, 256000)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    server.pages["/data.bin"] = (200, {}, BODY)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        fetch(remote(server.url + "/data.bin"), tmp_path / str(shown))
        assert ("data.bin" in stream.getvalue()) is shown


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("GPUCNN_DATA", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "gpucnn"


def test_an_atomic_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as out:
        out.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"

    def interrupted():
        with atomic_file(path) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"all"
    assert os.listdir(tmp_path) == ["file"]


# --- archives --------------------------------------------------------------------------------------------------------


def archive_of(path, *members):
    """A .tar.gz of (name, content) and of TarInfos."""
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_an_archive_is_unpacked(tmp_path):
    folder = special("set", tarfile.DIRTYPE)
    archive = archive_of(tmp_path / "a.tar.gz", folder, ("set/one.bin", b"1"), ("./set/deep/two.bin", b"22"))
    extract(archive, tmp_path / "out")
    assert (tmp_path / "out/set/one.bin").read_bytes() == b"1"
    assert (tmp_path / "out/set/deep/two.bin").read_bytes() == b"22"
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"!"),
        ("set/../../evil", b"!"),
        ("/tmp/gpucnn-evil", b"!"),
        ("C:\\evil", b"!"),
        ("C:evil", b"!"),
        ("..\\evil", b"!"),
        special("set/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("set/link", tarfile.SYMTYPE, "one.bin"),
        special("set/hard", tarfile.LNKTYPE, "set/one.bin"),
        special("set/pipe", tarfile.FIFOTYPE),
        special("set/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: member.name if isinstance(member, tarfile.TarInfo) else member[0],
)
def test_an_archive_that_leads_out_of_its_folder_is_refused_whole(tmp_path, member):
    archive = archive_of(tmp_path / "a.tar.gz", ("set/one.bin", b"1"), member)
    with pytest.raises(
        ValueError, match=r"a.tar.gz: refusing to unpack .*: (it is not a plain file|the name leads out)"
    ):
        extract(archive, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz"]


@pytest.mark.parametrize("damage", ["not gzip", "not tar", "cut", "no deflate"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    archive = archive_of(tmp_path / "a.tar.gz", ("set/one.bin", os.urandom(50_000)))
    data = bytearray(gzip.compress(b"hello" * 1000))
    data[10] = 0b111  # a kind of block that deflate does not have
    archive.write_bytes(
        {
            "not gzip": b"hello",
            "not tar": gzip.compress(b"hello" * 1000),
            "cut": archive.read_bytes()[:20_000],
            "no deflate": bytes(data),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"a.tar.gz: cannot unpack: "):
        extract(archive, tmp_path / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
