"""Which files a path, glob or folder names: all of them, or an error that names what is not read."""

import gzip
import os
import socket

import pytest
from conftest import Command

from hybrid.data.corpora.listing import find_files, format_of, suffix_of
from hybrid.data.corpora.locating import locate


def names(corpus: object, format: str = "auto") -> list[str]:
    return [path.name for path in find_files(str(corpus), format)]


@pytest.fixture
def texts(tmp_path):
    """a.txt, b.md and sub/c.txt."""
    for name in ("a.txt", "b.md", "sub/c.txt", "sub/.hidden.txt", ".git/d.txt", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def refuse_to_list(monkeypatch, folder) -> None:
    """As for a user who may not read it; root may."""
    scandir = os.scandir

    def refusing(path="."):
        if os.path.abspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)


@pytest.mark.parametrize("corpus", ["", "  ", "\n"])
def test_an_empty_name_is_no_corpus(corpus: str, texts, monkeypatch) -> None:
    monkeypatch.chdir(texts)
    with pytest.raises(ValueError, match=r"data.corpus: .* is empty .*variable of the shell.*embedded"):
        locate(corpus)
    assert names(".") == ["a.txt", "b.md", "c.txt"]  # said on purpose


def test_the_whole_file_system_is_no_corpus(texts) -> None:
    (texts / "root").symlink_to("/")
    for corpus in ("/", "//", "/.", texts / "root"):
        with pytest.raises(ValueError, match=r"data.corpus: .* is the root of the whole file system"):
            find_files(str(corpus))


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt"])
def test_a_folder_that_can_not_be_read_is_named(pattern: str, texts, monkeypatch) -> None:
    assert "c.txt" in names(texts / pattern)
    refuse_to_list(monkeypatch, texts / "sub")
    with pytest.raises(ValueError, match=r"data.corpus: .*/sub/?: Permission denied; make it readable"):
        find_files(str(texts / pattern))
    assert names(texts / "*.txt") == ["a.txt"]  # does not look into it


def test_training_refuses_a_folder_that_can_not_be_read(texts, monkeypatch, command: Command) -> None:
    refuse_to_list(monkeypatch, texts / "sub")
    words = [f"data.corpus={texts}", f"run.folder={texts / 'runs'}", f"data.cache_dir={texts / 'cache'}"]
    error = command("train.py", *words).error
    assert error == f"error: data.corpus: {texts}/sub: Permission denied; make it readable, or name what to read"
    assert not (texts / "runs").exists()


def test_a_folder_that_may_not_be_entered_is_named(texts, monkeypatch) -> None:
    lstat = os.lstat

    def refusing(path, **settings):
        if str(path) == str(texts / "sub" / "c.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path, **settings)

    assert names(texts / "s*" / "c.txt") == ["c.txt"] and names(texts / "s*" / "d.txt") == []
    monkeypatch.setattr("os.lstat", refusing)
    with pytest.raises(ValueError, match=r"data.corpus: .*/sub/c.txt: Permission denied"):
        find_files(str(texts / "s*" / "c.txt"))


def test_a_hidden_folder_may_be_unreadable(texts, monkeypatch) -> None:
    refuse_to_list(monkeypatch, texts / ".git")
    assert names(texts) == ["a.txt", "b.md", "c.txt"]


@pytest.mark.parametrize("pattern", ["", "*.txt", "**/*.txt", "gone.txt"])
def test_a_link_to_nothing_is_named(pattern: str, texts) -> None:
    (texts / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(ValueError, match=r"data.corpus: '.*gone.txt' is a link to nothing"):
        find_files(str(texts / pattern))


@pytest.mark.parametrize("pattern", ["", "*.txt", "pipe.txt"])
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(pattern: str, texts) -> None:
    os.mkfifo(texts / "pipe.txt")
    with pytest.raises(ValueError, match=r"data.corpus: '.*pipe.txt' is a pipe, a socket or a device; write"):
        find_files(str(texts / pattern))


def test_a_socket_and_a_device_are_refused(texts, monkeypatch) -> None:
    monkeypatch.chdir(texts)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.txt")
        for corpus in ("s.txt", "/dev/null"):
            with pytest.raises(ValueError, match=r"is a pipe, a socket or a device"):
                find_files(corpus)


def test_links_to_files_are_read_and_links_to_folders_are_spoken_of(texts, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "x.txt").write_text("x")
    (texts / "linked.txt").symlink_to(other / "x.txt")
    assert "linked.txt" in names(texts)
    (texts / "more").symlink_to(other)
    with pytest.warns(UserWarning, match=r"data.corpus: linked folders in .* not searched \(.*/more\)"):
        assert "x.txt" not in names(texts)
    (texts / "more").unlink()
    (texts / "loop").symlink_to(texts)
    with pytest.warns(UserWarning, match="linked folders"):
        assert names(texts).count("a.txt") == 1
    (texts / "self").symlink_to("self")
    with pytest.raises(ValueError, match=r"data.corpus: '.*self': Too many levels of symbolic links"):
        find_files(str(texts / "self"))


def test_a_glob_that_matches_folders_says_so(texts) -> None:
    with pytest.warns(UserWarning, match=r"matches folders \(.*/sub\), which are not searched"):
        assert names(texts / "*") == ["a.txt", "b.md", "e.png"]
    with pytest.raises(ValueError, match=r"data.corpus: .*matches folders \(.*/sub\) and no file"):
        find_files(str(texts / "s*"))
    assert names(texts / "**") == ["a.txt", "b.md", "e.png", "c.txt"]


def test_names_that_no_system_has(texts) -> None:
    assert find_files("a" * 5000) == ()
    with pytest.raises(ValueError, match=r"'a\\x00b' is no path"):
        find_files("a\0b")
    assert find_files("~nosuchuser/x") == ()
    with pytest.raises(ValueError, match=r"data.corpus: '~nosuchuser/x': no such file") as caught:
        locate("~nosuchuser/x")
    with pytest.raises(ValueError, match=r"data.corpus: .*characters\).*no such file") as caught:
        locate("./" + "a" * 5000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["x.csv", "x.jsonlines", "part-00000", "x.csv.gz", "x.gz", "x.tar.gz"])
def test_a_suffix_that_says_nothing_needs_a_format(name: str, tmp_path) -> None:
    (tmp_path / name).write_text("a,b\n")
    with pytest.raises(
        ValueError, match=rf"data.format: the name of '.*{name}' does not tell .*set data.format to text"
    ):
        locate(str(tmp_path / name))
    assert locate(str(tmp_path / name), format="text").identity() != locate(str(tmp_path / name), "jsonl").identity()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=rf"data.format: .*{name}"):
        locate(str(tmp_path / "*"))


def test_what_is_no_text_is_called_by_its_name(tmp_path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match=r"data.format: '.*x.zip' is a zip archive; unpack it"):
        locate(str(tmp_path / "x.zip"))


def test_a_packed_file_without_a_suffix_inside_is_told_how_to_be_called(tmp_path) -> None:
    for suffix, content in ((".gz", gzip.compress(b"text")), (".zst", b"\x28\xb5\x2f\xfd and so on")):
        path = tmp_path / f"c{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            locate(str(path))
        assert str(caught.value) == (
            f"data.format: '{path}' is packed, which is read, but its name does not tell what is in it; call it "
            f".jsonl{suffix} or .txt{suffix}, or set data.format to text, jsonl, parquet"
        )
    assert locate(str(tmp_path / "c.gz"), format="text").load(tmp_path / "s").read([0])[0].text == "text"


def test_what_a_folder_leaves_out_is_counted(tmp_path, caplog) -> None:
    for name in ("a.txt", "b.txt", "sub/z.csv", "c.py", "d.csv", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    caplog.set_level("INFO", logger="hybrid")
    assert [path.name for path in find_files(str(tmp_path))] == ["a.txt", "b.txt"]
    assert caplog.messages == [
        f"data.corpus: 3 other files in '{tmp_path}' are left out ({tmp_path}/c.py and 2 more); a glob and data.format "
        "read them"
    ]
    caplog.clear()
    assert len(find_files(str(tmp_path / "*.txt"))) == 2 and not caplog.messages


def test_a_folder_of_other_files_says_how_to_read_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("py/a.py", "py/sub/b.py", "py/notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match=r"e\.g\. data\.corpus='py/\*\*/\*\.py' data\.format=text$"):
        find_files("py")
    assert format_of(found := find_files("py/**/*.py"), "text", "py/**/*.py") == "text" and len(found) == 2


def test_suffixes_in_any_case_and_packed(tmp_path) -> None:
    assert [suffix_of(f"A.{name}") for name in ("JSONL", "txt.gz", "Json.ZST", "parquet")] == [
        ".jsonl", ".txt", ".json", ".parquet",
    ]  # fmt: skip
    for name in ("A.JSONL", "b.txt.gz", "c.md.zst", "d.bz2"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == ["A.JSONL", "b.txt.gz", "c.md.zst"]
    assert format_of([tmp_path / "A.JSONL"], "auto", "") == "jsonl"


def test_names_that_are_not_utf8(tmp_path) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / odd).write_text("coffee")
    with pytest.raises(ValueError, match=r"data.corpus: .*is not UTF-8, so the record of the run.*rename") as caught:
        locate(str(tmp_path / odd))
    str(caught.value).encode()
    assert names(tmp_path) == names(tmp_path / "*.txt") == [odd]
