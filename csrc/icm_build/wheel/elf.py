"""What a shared library needs and offers, read from the file: readelf and nm may be absent.

Names as in the ELF specification; only what 64-bit little-endian libraries with section headers hold.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MACHINES = {62: "x86_64", 183: "aarch64"}

SHT_SYMTAB, SHT_DYNAMIC, SHT_DYNSYM, SHT_GNU_VERNEED, SHT_GNU_VERSYM = 2, 6, 11, 0x6FFFFFFE, 0x6FFFFFFF
DT_NEEDED, DT_RPATH, DT_RUNPATH = 1, 15, 29
SHN_UNDEF, STB_LOCAL, STB_WEAK = 0, 0, 2
PT_GNU_STACK, PF_X = 0x6474E551, 1


class NotALibrary(ValueError):
    """The file is not one that can be read here."""


@dataclass(frozen=True)
class Needed:
    """A symbol that another library must have."""

    name: str
    version: str  # "GLIBC_2.34"; empty where the library that has it gives none
    weak: bool  # may stay absent


@dataclass(frozen=True)
class SharedLibrary:
    """What the loader looks at."""

    machine: str
    libraries: tuple[str, ...]
    search_path: str
    needed: tuple[Needed, ...]
    exported: frozenset[str]
    local: frozenset[str]  # what is inside without being offered; empty if the library was stripped
    executable_stack: bool


@dataclass(frozen=True)
class Section:
    kind: int
    start: int
    size: int
    link: int


def read(path: Path) -> SharedLibrary:
    """Raises NotALibrary for another kind of file."""
    with path.open("rb") as file:
        if path.stat().st_size < 64:
            raise NotALibrary(f"{path}: {path.stat().st_size} bytes are no library")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:6] != b"\x7fELF\x02\x01":
                raise NotALibrary(f"{path}: expected a 64-bit little-endian ELF file, got {content[:6]!r}")
            try:
                return Reader(content).library()
            except (struct.error, IndexError, ValueError) as error:
                raise NotALibrary(f"{path}: damaged: {error}") from error


class Reader:
    """One file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        (machine,) = struct.unpack_from("<H", content, 18)
        self.machine = MACHINES.get(machine, f"machine {machine}")
        (table,) = struct.unpack_from("<Q", content, 40)
        size, count = struct.unpack_from("<HH", content, 58)
        self.sections = [self._section(table + size * i) for i in range(count)]

    def _section(self, at: int) -> Section:
        _, kind, _, _, start, size, link = struct.unpack_from("<IIQQQQI", self.content, at)
        return Section(kind, start, size, link)

    def library(self) -> SharedLibrary:
        dynamic = list(self._dynamic())
        versions = self._versions()
        needed, exported = [], set()
        for i, (name, binding, section) in enumerate(self._symbols(SHT_DYNSYM)):
            if binding == STB_LOCAL:
                continue
            if section == SHN_UNDEF:
                needed.append(Needed(name, versions[i] if versions else "", binding == STB_WEAK))
            else:
                exported.add(name)
        local = {name for name, binding, section in self._symbols(SHT_SYMTAB) if section != SHN_UNDEF}
        return SharedLibrary(
            self.machine,
            tuple(text for tag, text in dynamic if tag == DT_NEEDED),
            ":".join(text for tag, text in dynamic if tag in (DT_RPATH, DT_RUNPATH)),
            tuple(needed),
            frozenset(exported),
            frozenset(local - exported),
            self._executable_stack(),
        )

    def _of_kind(self, kind: int) -> Section | None:
        return next((section for section in self.sections if section.kind == kind), None)

    def _bytes(self, section: Section) -> bytes:
        found = self.content[section.start : section.start + section.size]
        if len(found) != section.size:
            raise ValueError("a section ends behind the file")
        return found

    def _text(self, strings: bytes, at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode()

    def _symbols(self, kind: int) -> Iterator[tuple[str, int, int]]:
        """Name, binding and section of each entry, in order: versions are found by position."""
        table = self._of_kind(kind)
        if table is None:
            return
        strings = self._bytes(self.sections[table.link])
        for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", self._bytes(table)):
            yield self._text(strings, name), info >> 4, section

    def _dynamic(self) -> Iterator[tuple[int, str]]:
        """The entries that name something."""
        table = self._of_kind(SHT_DYNAMIC)
        if table is None:
            raise ValueError("nothing for the loader in it")
        strings = self._bytes(self.sections[table.link])
        for tag, value in struct.iter_unpack("<qQ", self._bytes(table)):
            if tag in (DT_NEEDED, DT_RPATH, DT_RUNPATH):
                yield tag, self._text(strings, value)

    def _versions(self) -> list[str]:
        """The version that each entry of the dynamic symbol table asks for."""
        table, numbers = self._of_kind(SHT_GNU_VERNEED), self._of_kind(SHT_GNU_VERSYM)
        if numbers is None:
            return []
        names = {}
        if table is not None:
            strings = self._bytes(self.sections[table.link])
            names = {number: self._text(strings, name) for number, name in self._needed_versions(table)}
        return [names.get(number & 0x7FFF, "") for (number,) in struct.iter_unpack("<H", self._bytes(numbers))]

    def _needed_versions(self, table: Section) -> Iterator[tuple[int, int]]:
        """Number and name of each: a list for each library, linked by offsets from where an entry begins."""
        at = table.start
        while True:
            _, _, _, first, next_library = struct.unpack_from("<HHIII", self.content, at)
            entry = at + first
            while True:
                _, _, number, name, next_entry = struct.unpack_from("<IHHII", self.content, entry)
                yield number, name
                if next_entry == 0:
                    break
                entry += next_entry
            if next_library == 0:
                return
            at += next_library

    def _executable_stack(self) -> bool:
        (table,) = struct.unpack_from("<Q", self.content, 32)
        size, count = struct.unpack_from("<HH", self.content, 54)
        for i in range(count):
            kind, flags = struct.unpack_from("<II", self.content, table + size * i)
            if kind == PT_GNU_STACK:
                return bool(flags & PF_X)
        return True  # what the loader assumes without that entry
