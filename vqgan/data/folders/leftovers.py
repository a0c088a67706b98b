"""Files of a folder that are no images to read, by ending: which may be images all the same, and which need not worry.

What is expected beside images is not reported: a README, a license, checksums, what file managers leave behind.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vqgan.data.folders.listing import EXTENSIONS, METADATA_FILES, TEXT_ENDING, Listing, ending
from vqgan.data.unused import EXAMPLES, Unused

_EXPECTED = {"readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors", "checksums"}
_EXPECTED |= {"md5sum", "md5sums", "sha1sum", "sha1sums", "sha256sum", "sha256sums", "thumbs.db", "ehthumbs.db"}
_EXPECTED |= {"desktop.ini", "dataset_info.json", "dataset_infos.json", "icon\r"}
_EXPECTED_ENDINGS = {"", ".txt", ".md", ".rst", ".html", ".pdf", ".cff", ".bib"}
"""Of the files above whose names have one."""
_CHECKSUMS = {".md5", ".sha1", ".sha256", ".sha512"}

_KINDS = {
    "an image format that is not read; convert them to PNG or JPEG": (
        *(".heic", ".heif", ".jxl", ".svg", ".svgz", ".eps", ".ps", ".psd", ".xcf", ".tga", ".pcx", ".dds", ".exr"),
        *(".hdr", ".icns", ".cur", ".sgi", ".rgb", ".rgba", ".ras", ".xbm", ".xpm", ".wmf", ".emf", ".fits", ".fit"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".jxr", ".wdp"),
        *(".bpg", ".flif", ".djvu", ".dcm", ".jls"),
    ),
    "not unpacked; unpack them, or read tar shards with kind: shards and tables with kind: dataset": (
        *(".tar", ".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".parquet", ".arrow", ".feather"),
        *(".lmdb", ".mdb", ".h5", ".hdf5", ".npz", ".tfrecord", ".tfrecords", ".beton", ".mds"),
    ),
    "captions are read from name.txt beside name.png alone; rename them": (".caption", ".captions", ".cap", ".text"),
    "lists of captions are read from metadata.csv and metadata.jsonl alone; rename the one that is meant": (
        *(".csv", ".tsv", ".jsonl", ".ndjson"),
    ),
}
"""Why what may be data is not used -> by which endings it is known."""
_REASONS = {suffix: reason for reason, suffixes in _KINDS.items() for suffix in suffixes}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"qoif")


def leftover_files(listing: Listing, named: Iterable[str], *, has_metadata: bool) -> list[Unused]:
    """Returns what lies in a folder beside its images, texts and metadata, but for files that a row of metadata has
    `named`."""
    groups: dict[str, list[str]] = {}
    taken = set(named)
    for name in listing.others:
        if name not in taken and not is_expected(name):
            groups.setdefault(ending(name), []).append(name)
    found = [_unused(listing.root, suffix, names, has_metadata) for suffix, names in groups.items()]
    unreadable: dict[str, list[str]] = {}
    for folder, cause in listing.unreadable.items():
        unreadable.setdefault(cause, []).append(folder)
    found += [Unused.of(names, "folders", f"cannot be read: {cause}") for cause, names in unreadable.items()]
    kinds = {
        "linked folders": (listing.repeated, "lead to a folder that is read already or that holds the data set", True),
        "links": (listing.dead, "lead nowhere", True),
        "pipes, sockets or devices": (listing.special, "not files", False),
    }
    found += [Unused.of(names, what, why, lost=lost) for what, (names, why, lost) in kinds.items() if names]
    return sorted(found, key=lambda unused: -unused.count)


def is_expected(name: str) -> bool:
    """Returns whether anyone expects such a file beside images: a README, checksums, ..."""
    path = PurePosixPath(name)
    own, suffix = path.name.lower(), path.suffix.lower()
    return own in _EXPECTED or suffix in _CHECKSUMS or (suffix in _EXPECTED_ENDINGS and path.stem.lower() in _EXPECTED)


def _unused(root: Path, suffix: str, names: list[str], has_metadata: bool) -> Unused:
    what = f"files ending in {suffix}" if suffix else "files without an ending"
    reason = _REASONS.get(suffix)
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson") and has_metadata:
        return Unused.of(names, what, f"captions are read from {' and '.join(METADATA_FILES)} alone", lost=False)
    if reason is None and any(_looks_like_image(root / name) for name in names[:EXAMPLES]):
        reason = "images by their first bytes, which are looked for by their endings alone; rename them to .png or .jpg"
    known = f"{EXTENSIONS[0]}, {EXTENSIONS[2]}, ... and {TEXT_ENDING}"
    return Unused.of(names, what, reason or f"read are files ending in {known}", lost=reason is not None)


def _looks_like_image(path: Path) -> bool:
    try:
        # Nothing waits here: a name that became a pipe since it was listed is opened and not read.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            head = os.read(descriptor, 16) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError:
        return False
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or head.startswith(_SIGNATURES) or head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")
